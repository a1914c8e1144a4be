"""The visitors' streams and conversations: all that lives while the server does; knows no Gradio."""
