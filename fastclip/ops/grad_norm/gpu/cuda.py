"""`grad_norm` by the CUDA kernels: csrc/cuda/grad_norm.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops.grad_norm.gpu.backend import GpuGrads


class CudaGrads(GpuGrads):
    """Tensors on a CUDA device, by one launch that reads and one that scales."""

    def _norm(
        self,
        p: float,
        max_norm: float,
        scale: bool,
        total: Tensor | None,
        each: Tensor | None,
        units: Tensor | None,
    ) -> Tensor:
        core = native.require()
        size = core.cuda_work_size(self._list)
        work = torch.empty(size, dtype=torch.float64, device=self._device)
        core.cuda_grad_norm(self._list, p, max_norm, scale, work, total, each, units)
        return work

    def _scale(self, max_norm: float, norm: Tensor) -> None:
        native.require().cuda_scale_grads(self._list, max_norm, _near(norm))

    def _multiply(self, factor: Tensor) -> None:
        native.require().cuda_multiply(self._list, _near(factor))

    def _scale_each(self, factors: Tensor) -> None:
        native.require().cuda_scale_each(self._list, factors)

    def _clamp(self, limit: float) -> None:
        native.require().cuda_clamp(self._list, limit)


def _near(number: Tensor) -> Tensor | float:
    """A number that the host has as such: a kernel could not read it there."""
    return float(number) if number.device.type == "cpu" else number
