"""What the backends of `grad_norm` on a GPU share: the CUDA kernels' and Triton's.

Neither waits for the device: norms stay there, and the scaling reads its factor there.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastclip.ops.grad_norm.reference import LARGEST_UNSCALED_ORDER, factor_of, norm_of
from fastclip.ops.grad_norm.tensor_list import DTYPES, PythonTensorList, is_scalar, promoted

if TYPE_CHECKING:
    from fastclip._native import TensorList

    AnyList = TensorList | PythonTensorList

DEVICE_TYPES = {2: "cuda", 10: "cuda", 14: "xpu"}  # DLPack's kDLCUDA, kDLROCM, kDLOneAPI


class GpuGrads:
    """Tensors on one GPU: their norm, and their scaling in place. As cpu.CpuGrads."""

    def __init__(self, tensors: AnyList) -> None:
        self._list = tensors
        self._device = _device(*tensors.device)
        self.dtype = promoted(tensors.dtypes)
        self.dtypes = [dtype for i, dtype in enumerate(DTYPES) if tensors.dtypes >> i & 1]
        self._known: dict[float, tuple[Tensor, Tensor]] = {}  # p: the norm, rounded; unrounded

    def __len__(self) -> int:
        return len(self._list)

    def has_norm(self, p: float) -> bool:
        """Whether the kernels define this p for these tensors as torch does."""
        return self._list.has_norm(p)

    def takes(self, total_norm: Tensor) -> bool:
        """Whether `clip_by_` reads this norm as torch would."""
        on_host = total_norm.device.type == "cpu"
        near = on_host or total_norm.device == self._device
        return near and is_scalar(total_norm)

    def exact_norm(self, p: float) -> Tensor:
        """The unrounded p-norm of all elements: 0-d, float64."""
        self.total_norm(p)
        return self._known[p][1]

    def total_norm(self, p: float) -> Tensor:
        """The p-norm of all elements: 0-d, in the tensors' promoted dtype."""
        if p not in self._known:
            if _has_total(p):
                total = self._number()
                self._known[p] = total, self._norm(p, math.inf, False, total, None, None)[1]
            else:
                exact = norm_of(self.norms(p)[0], p)
                self._known[p] = exact.to(self.dtype), exact
        return self._known[p][0]

    def norms(self, *orders: float) -> Tensor:
        """The norm of each tensor for each order: [orders, tensors], float64.

        A read for each; two for orders whose powers may leave float64's range.
        """
        norms = torch.empty(len(orders), len(self), dtype=torch.float64, device=self._device)
        for p, each in zip(orders, norms, strict=True):
            self._norm(p, math.inf, False, None, each, self._units(p))
        return norms

    def clip_(self, max_norm: float, p: float) -> Tensor:
        """Scales to at most `max_norm`; returns the norm before."""
        if p in self._known or not _has_total(p):
            total = self.total_norm(p)
            self._scale(max_norm, self.exact_norm(p))
        else:
            total = self._number()
            self._norm(p, max_norm, True, total, None, None)
        self._written()
        return total

    def clip_by_(self, max_norm: float, total_norm: Tensor) -> None:
        """Scales by min(1, max_norm / (total_norm + 1e-6)), for a norm known before."""
        self._scale(max_norm, total_norm.detach())
        self._written()

    def scale_(self, factor: Tensor) -> None:
        """Multiplies every element by a 0-d factor, whatever it is: one launch, which at 1 reads
        nothing more."""
        factor = factor.detach()
        self._multiply(factor if is_scalar(factor) else factor.double())
        self._written()

    def scale_each_(self, factors: Tensor) -> None:
        """Multiplies each tensor by its factor, [tensors], float64, on the device: one launch,
        which reads no tensor whose factor is 1."""
        self._scale_each(factors)
        self._written()

    def clamp_(self, limit: float) -> None:
        """Clamps every element to [-limit, limit], a limit in the range of every dtype."""
        self._clamp(limit)
        self._written()

    def norm_and_factor(self, max_norm: float, p: float) -> tuple[Tensor, Tensor]:
        """(the norm, the factor that clips to `max_norm`, float64): one launch, where it has p."""
        if p in self._known or not _has_total(p):
            return self.total_norm(p), factor_of(max_norm, self.exact_norm(p))
        total = self._number()
        work = self._norm(p, max_norm, False, total, None, None)
        self._known[p] = total, work[1]
        return total, work[2]

    def _units(self, p: float) -> Tensor | None:
        """The extreme of each tensor, where its powers may leave float64's range: what its elements
        are divided by."""
        is_wide = torch.float64 in self.dtypes
        if _has_total(p) or (abs(p) <= LARGEST_UNSCALED_ORDER and not is_wide):
            return None
        return self.norms(math.copysign(math.inf, p))[0]

    def _number(self) -> Tensor:
        return torch.empty((), dtype=self.dtype, device=self._device)

    def _written(self) -> None:
        self._known.clear()
        torch.autograd.graph.increment_version(self._list.tensors)

    def _norm(
        self,
        p: float,
        max_norm: float,
        scale: bool,
        total: Tensor | None,
        each: Tensor | None,
        units: Tensor | None,
    ) -> Tensor:
        """Queues the norm, and the scaling if asked; returns float64s of which the second is the
        norm, unrounded, and the third the factor. Of orders without a total, `each` alone."""
        raise NotImplementedError

    def _scale(self, max_norm: float, norm: Tensor) -> None:
        raise NotImplementedError

    def _multiply(self, factor: Tensor) -> None:
        raise NotImplementedError

    def _scale_each(self, factors: Tensor) -> None:
        raise NotImplementedError

    def _clamp(self, limit: float) -> None:
        raise NotImplementedError


def _has_total(p: float) -> bool:
    """Whether a launch has the norm of the whole list; of other orders it is of each tensor's."""
    return p in (1.0, 2.0) or math.isinf(p)


@functools.cache
def _device(kind: int, index: int) -> torch.device:
    if kind not in DEVICE_TYPES:
        return torch.device("cpu")  # Triton's interpreter
    return torch.device(DEVICE_TYPES[kind], index)
