"""`grad_norm` on the CPU, by the native core: csrc/cpu/grad_norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops.grad_norm.reference import EPS
from fastclip.ops.grad_norm.tensor_list import is_scalar, promoted

if TYPE_CHECKING:
    from fastclip._native import TensorList

_FITS_ALL = 65504.0  # the largest float16


class CpuGrads:
    """Plain CPU tensors, kept alive: their norm, and their scaling in place."""

    def __init__(self, tensors: TensorList) -> None:
        self._core = native.require()
        self._list = tensors
        self._known: dict[float, float] = {}  # p: norm

    def __len__(self) -> int:
        return len(self._list)

    def has_norm(self, p: float) -> bool:
        """Whether the kernels define this p for these tensors as torch does."""
        return self._list.has_norm(p)

    def takes(self, total_norm: Tensor) -> bool:
        """Whether `clip_by_` reads this norm as torch would."""
        return total_norm.device.type == "cpu" and is_scalar(total_norm)

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' promoted dtype."""
        return promoted(self._list.dtypes)

    def exact_norm(self, p: float) -> Tensor:
        """The unrounded p-norm of all elements: 0-d, float64."""
        return _as_tensor(self._norm(p), torch.float64)

    def total_norm(self, p: float) -> Tensor:
        """The p-norm of all elements: 0-d, in the tensors' promoted dtype."""
        return _as_tensor(self._norm(p), self.dtype)

    def norms(self, *orders: float) -> Tensor:
        """The norm of each tensor for each order, from one read: [orders, tensors], float64."""
        norms = torch.empty(len(orders), len(self), dtype=torch.float64, device="cpu")
        self._core.grad_norms(self._list, orders, norms)
        return norms

    def clip_(self, max_norm: float, p: float) -> Tensor:
        """Scales to at most `max_norm`; returns the norm before. Nothing is written at factor 1."""
        norm = self._norm(p)  # the factor comes from the unrounded norm
        self._scale_to(max_norm, norm)
        return _as_tensor(norm, self.dtype)

    def clip_by_(self, max_norm: float, total_norm: Tensor) -> None:
        """Scales by min(1, max_norm / (total_norm + 1e-6)), for a norm known before."""
        self._scale_to(max_norm, float(total_norm.detach()))

    def scale_(self, factor: Tensor) -> None:
        """Multiplies every element by a 0-d factor, whatever it is."""
        self._multiply(float(factor.detach()))

    def scale_each_(self, factors: Tensor) -> None:
        """Multiplies each tensor by its factor, [tensors], float64; those of 1 stay unwritten."""
        self._known.clear()
        self._core.scale_each(self._list, factors)

    def _norm(self, p: float) -> float:
        if p not in self._known:
            self._known[p] = self._core.grad_norm(self._list, p)
        return self._known[p]

    def _scale_to(self, max_norm: float, norm: float) -> None:
        # A norm of the caller's may be -1e-6: torch then divides by zero, as IEEE 754 has it.
        factor = max_norm / divisor if (divisor := norm + EPS) else max_norm * math.inf
        if not factor >= 1:  # a NaN factor scales too, and makes every gradient NaN
            self._multiply(factor)

    def _multiply(self, factor: float) -> None:
        self._known.clear()
        self._core.scale_grads(self._list, factor)


def _as_tensor(norm: float, dtype: torch.dtype) -> Tensor:
    if norm < _FITS_ALL:
        return torch.scalar_tensor(norm, dtype=dtype, device="cpu")
    # A norm past the dtype's range is infinite, where a conversion of the number would raise.
    return torch.tensor(norm, dtype=torch.float64, device="cpu").to(dtype)
