"""Adaptive clipping of one pair of weight and gradient, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

GRAD_FLOOR = 1e-6  # of the norm that divides, as in the published code


@torch.no_grad()
def clip_units_ref_(weight: Tensor, grad: Tensor, clipping: float, eps: float) -> None:
    """The same for one pair, in plain torch; in float64 where the device has it."""
    limit = clipping * unit_norms(weight).clamp(min=eps)
    norm = unit_norms(grad)
    within = (norm <= limit) & ~norm.isinf()
    grad.mul_(torch.where(within, 1.0, limit / norm.clamp(min=GRAD_FLOOR)))


def unit_norms(x: Tensor) -> Tensor:
    """The norm of each unit, shaped to broadcast; the square of no float32 leaves float64."""
    x = x.detach()
    dims = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    if x.device.type == "mps":
        return torch.linalg.vector_norm(x.float(), dim=dims, keepdim=x.ndim > 1)
    if x.dtype == torch.float64 and x.numel():
        largest = x.abs().amax(dim=dims, keepdim=x.ndim > 1) if dims else x.abs().amax()
        scale = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
        return torch.linalg.vector_norm(x / scale, dim=dims, keepdim=x.ndim > 1) * scale
    wide = torch.complex128 if x.is_complex() else torch.float64
    return torch.linalg.vector_norm(x, dim=dims, keepdim=x.ndim > 1, dtype=wide)
