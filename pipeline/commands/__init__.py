"""Commands that watch videos or look into them; the bench and the checks have theirs beside their code."""
