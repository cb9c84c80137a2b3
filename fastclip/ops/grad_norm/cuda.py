"""`grad_norm` by the CUDA kernels: csrc/cuda/grad_norm.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops.grad_norm.gpu import GpuGrads


class CudaGrads(GpuGrads):
    """Tensors on a CUDA device, by one launch that reads and one that scales."""

    def _norm(
        self,
        p: float,
        max_norm: float,
        scale: bool,
        total: Tensor | None,
        each: Tensor | None,
        optimizer: Tensor | None,
    ) -> Tensor:
        core = native.require()
        size = core.cuda_work_size(self._list, each is not None)
        work = torch.empty(size, dtype=torch.float64, device=self._device)
        core.cuda_grad_norm(self._list, p, max_norm, scale, work, total, each, optimizer)
        return work[1] if not scale else work

    def _scale(self, max_norm: float, norm: Tensor) -> None:
        known = float(norm) if norm.device.type == "cpu" else norm
        native.require().cuda_scale_grads(self._list, max_norm, known)
