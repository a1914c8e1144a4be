"""The page: knows gradio, never torch; enters the engine only through `pipeline`."""
