"""The example clip's pictures and sounds, drawn by this project alone: a small ray tracer, its scenes, its music."""
