"""The backend of `grad_norm` where no kernel is: torch's functions, a tensor at a time, in float64.

It measures and scales what stands beside tensors that kernels take; a list of nothing else goes to
torch.nn.utils whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

EPS = 1e-6  # torch's
SMALLEST_NORMAL = torch.finfo(torch.float32).smallest_normal
LARGEST_UNSCALED_ORDER = 4.0  # float32's numbers to this power are normal ones of float64


class Backend(Protocol):
    """What measures and scales some plain tensors of one device."""

    def has_norm(self, p: float) -> bool: ...
    def exact_norm(self, p: float) -> Tensor: ...
    def norms(self, *orders: float) -> Tensor: ...
    def clip_by_(self, max_norm: float, total_norm: Tensor) -> None: ...
    def scale_(self, factor: Tensor) -> None: ...


class TorchGrads:
    """The backend of what no kernel takes: tensors with gaps, odd orders, other devices."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)

    def has_norm(self, p: float) -> bool:
        return True

    def exact_norm(self, p: float) -> Tensor:
        return norm_of(self.norms(p)[0], p)

    @torch.no_grad()
    def norms(self, *orders: float) -> Tensor:
        return torch.stack([torch.stack([_norm(t, p) for t in self._tensors]) for p in orders])

    def clip_by_(self, max_norm: float, total_norm: Tensor) -> None:
        factor = factor_of(max_norm, total_norm)
        if factor.device.type != "cpu" or not factor >= 1:
            self.scale_(factor)

    @torch.no_grad()
    def scale_(self, factor: Tensor) -> None:
        if factor.device.type == "cpu" and 0 < abs(factor) < SMALLEST_NORMAL:
            for tensor in self._tensors:  # as a float32 the factor would keep a few bits
                tensor.copy_(tensor.double() * factor)
        else:
            by_dtype: dict[torch.dtype, list[Tensor]] = {}
            for tensor in self._tensors:
                if not tensor.is_neg():
                    by_dtype.setdefault(tensor.dtype, []).append(tensor)
            for dtype, plain in by_dtype.items():
                # As torch would round it, but of another dtype it takes a launch for each tensor.
                number = factor.to(dtype) if dtype == torch.float32 else factor
                torch._foreach_mul_(plain, number)
            for tensor in self._tensors:
                if tensor.is_neg():  # torch's foreach functions refuse it
                    tensor.mul_(factor)


def norm_of(norms: Tensor, p: float) -> Tensor:
    """The p-norm of norms, float64, scaled so that no power leaves its range; p is not 0."""
    if math.isinf(p):
        return torch.linalg.vector_norm(norms, p)
    extreme = norms.amax() if p > 0 else norms.amin()
    scale = torch.where(extreme.isfinite() & (extreme > 0), extreme, 1.0)
    return torch.linalg.vector_norm(norms / scale, p) * scale


def factor_of(max_norm: float, norm: Tensor) -> Tensor:
    """min(1, max_norm / (norm + 1e-6)) in float64."""
    return (max_norm / (norm.double() + EPS)).clamp(max=1.0)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device, without waiting for one but where the CPU is to read it."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def _norm(tensor: Tensor, p: float) -> Tensor:
    if tensor.numel() and (tensor.dtype == torch.float64 or abs(p) > LARGEST_UNSCALED_ORDER):
        return norm_of(tensor.double().abs(), p)
    return torch.linalg.vector_norm(tensor, p, dtype=torch.float64)
