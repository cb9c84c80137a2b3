"""Gradients over ranks: clipping of plain tensors that are parts of a whole, and a check."""

from fastclip.distributed.clip import clip_grad_norm_, get_total_norm
from fastclip.distributed.comparison import check

__all__ = ["check", "clip_grad_norm_", "get_total_norm"]
