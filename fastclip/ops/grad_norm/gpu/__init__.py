"""The backends of `grad_norm` on a GPU: the CUDA kernels', Triton's, and what both share."""
