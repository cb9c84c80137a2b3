"""What the backends of `grad_norm` on a GPU share: the CUDA kernels' and Triton's.

Neither waits for the device: norms stay there, and the scaling reads its factor there.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastclip.ops.grad_norm.tensor_list import PythonTensorList, is_scalar, promoted

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
        self._known: dict[float, tuple[Tensor, Tensor]] = {}  # p: the norm, rounded; unrounded

    def __len__(self) -> int:
        return len(self._list)

    def has_norm(self, p: float) -> bool:
        """Whether the kernels have this p: 1, 2, or inf where no tensor is empty."""
        return p in (1.0, 2.0, math.inf) and self._list.has_norm(p)

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
            total = self._number()
            self._known[p] = total, self._norm(p, math.inf, False, total, None, None)
        return self._known[p][0]

    def norms(self, *orders: float) -> Tensor:
        """The norm of each tensor for each order: [orders, tensors], float64; a read for each."""
        norms = torch.empty(len(orders), len(self), dtype=torch.float64, device=self._device)
        for p, each in zip(orders, norms, strict=True):
            self._norm(p, math.inf, False, None, each, None)
        return norms

    def clip_(self, max_norm: float, p: float) -> Tensor:
        """Scales to at most `max_norm`; returns the norm before."""
        if p in self._known:
            total, exact = self._known[p]
            self._scale(max_norm, exact)
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
        """Multiplies every element by a 0-d factor on the device, whatever it is."""
        self._known.clear()
        torch._foreach_mul_(self._list.tensors, factor)

    def step_factors(self, max_norm: float, p: float) -> tuple[Tensor, Tensor, Tensor]:
        """(the norm, 1 / factor, 1 where the norm is not finite): a fused step's inputs."""
        total = self._number()
        optimizer = torch.empty(2, dtype=torch.float32, device=self._device)
        self._norm(p, max_norm, False, total, None, optimizer)
        return total, optimizer[0], optimizer[1]

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
        optimizer: Tensor | None,
    ) -> Tensor:
        """Queues the norm, and the scaling if asked; returns the unrounded norm, float64."""
        raise NotImplementedError

    def _scale(self, max_norm: float, norm: Tensor) -> None:
        raise NotImplementedError


@functools.cache
def _device(kind: int, index: int) -> torch.device:
    if kind not in DEVICE_TYPES:
        return torch.device("cpu")  # Triton's interpreter
    return torch.device(DEVICE_TYPES[kind], index)
