"""Triton kernels, one folder an op. The only folder that imports triton."""
