"""Adaptive clipping by its definition, in float64, for the tests of the op unit_clip."""

from __future__ import annotations

import math

import torch
from torch import nn

import fastclip

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8, torch.float16: 2e-3}


def parameter(weight: torch.Tensor, grad: torch.Tensor) -> nn.Parameter:
    p = nn.Parameter(weight)
    p.grad = grad
    return p


def randn(shape, dtype=torch.float32, seed=0, scale=1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, dtype=torch.float64, generator=generator) * scale).to(dtype)


def exact(p: torch.Tensor, clipping: float, eps: float) -> torch.Tensor:
    """The gradient after the paper's definition, in float64."""
    w, g = p.detach().double(), p.grad.double()
    units = w.shape[0] if w.ndim > 1 else 1
    rows = [x.reshape(units, w.numel() // max(units, 1)) for x in (w, g)]
    # By hypot: squares of large and small doubles leave their own range.
    norms = [torch.tensor([math.hypot(*r) for r in x.tolist()], dtype=torch.float64) for x in rows]
    limit = clipping * norms[0].clamp(min=eps)
    factor = limit / norms[1].clamp(min=1e-6)
    factor = torch.where((norms[1] <= limit) & norms[1].isfinite(), 1.0, factor)
    return g * (factor.reshape(-1, *[1] * (w.ndim - 1)) if w.ndim > 1 else factor[0])


def check(parameters, clipping=0.01, eps=1e-3):
    expected = [exact(p, clipping, eps) for p in parameters]
    fastclip.AGC(clipping, eps).clip_(parameters)
    for p, e in zip(parameters, expected, strict=True):
        dtype = p.grad.dtype
        atol = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        torch.testing.assert_close(
            p.grad.double(), e, rtol=TOLERANCE[dtype], atol=atol, equal_nan=True
        )
