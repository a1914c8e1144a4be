"""One file per published system, all with the same face: `stream.VideoModel` (start, watch, ask)."""
