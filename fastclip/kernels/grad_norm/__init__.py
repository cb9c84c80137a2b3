"""Norms of many tensors and their scaling, in Triton."""
