"""Tensors in, tensors out: no configuration, no path, no progress bar."""
