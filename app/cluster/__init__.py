"""Streams on more than one engine: replicas on Ray Serve. Imported only where it is asked for."""
