"""What an hour costs, beside what the machine could do at best (README.md has the figures)."""
