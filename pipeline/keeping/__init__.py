"""Streams that outlive a process: a state as named tensors and a document, and back."""
