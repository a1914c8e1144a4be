"""Is it still right? Golden tensors recomputed, and how far saving memory or time strays."""
