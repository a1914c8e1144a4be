"""The page: a Gradio face over `pipeline`. Knows gradio, never torch."""
