"""Vision towers: what turns frames into tokens or features."""
