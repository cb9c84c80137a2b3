"""Triton kernels, one op a file. The only folder that imports triton."""
