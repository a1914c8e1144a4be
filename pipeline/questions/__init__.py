"""What a question asks for, and where in a video it points."""
