"""Kernels: tensors in, tensors out. Each stands beside the plain code that is always right."""
