"""The structure loss, forward and backward, in Triton."""
