"""Commands that watch a video or look into it; the bench and the checks have theirs beside their code."""
