"""`grad_norm` by Triton: GPUs without the CUDA kernels (no nvcc at install, AMD, Intel)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastclip.kernels.grad_norm import launch as kernels
from fastclip.ops.grad_norm.gpu import tables
from fastclip.ops.grad_norm.gpu.backend import GpuGrads


class TritonGrads(GpuGrads):
    """By fastclip/kernels/grad_norm; the same tensors at the same addresses upload no table."""

    def _norm(
        self,
        p: float,
        max_norm: float,
        scale: bool,
        total: Tensor | None,
        each: Tensor | None,
        units: Tensor | None,
    ) -> Tensor:
        if total is None and each is None:
            total = self._number()
        with tables.current(self._device):
            table = self._table()
            work = kernels.launch_norm(table, p, max_norm, total, each, units)
            if scale:
                kernels.launch_scale(table, kernels.OF_NORM, work[1], max_norm)
        return work

    def _scale(self, max_norm: float, norm: Tensor) -> None:
        with tables.current(self._device):
            kernels.launch_scale(self._table(), kernels.OF_NORM, self._near(norm), max_norm)

    def _multiply(self, factor: Tensor) -> None:
        with tables.current(self._device):
            kernels.launch_scale(self._table(), kernels.NUMBER, self._near(factor))

    def _scale_each(self, factors: Tensor) -> None:
        with tables.current(self._device):
            kernels.launch_scale(self._table(), kernels.OF_TENSOR, factors)

    def _clamp(self, limit: float) -> None:
        with tables.current(self._device):
            kernels.launch_clamp(self._table(), limit)

    def _near(self, number: Tensor) -> Tensor:
        """A number that a kernel reads on the device; one of the host's is filled in there."""
        if number.device == self._device:
            return number
        return torch.full((), float(number), dtype=torch.float64, device=self._device)

    def _table(self) -> kernels.Table:
        key = self._list.addresses()
        make = functools.partial(_made, key, self._list.dtypes, self._device)
        return tables.kept(key, self._device, make)


def _made(
    addresses: bytes, dtypes: int, device: torch.device, staged: tables.Staged
) -> kernels.Table:
    count = len(addresses) // 24
    memory = bytearray(addresses or bytes(24))
    found = torch.frombuffer(memory, dtype=torch.int64).view(-1, 3)[:count]
    is_short = int(found[:, 1].sum()) < count * kernels.SHORT.chunk
    shape = kernels.SHORT if is_short else kernels.LONG
    chunks = (found[:, 1:2] + shape.chunk - 1) // shape.chunk
    rows = torch.cat([found, chunks.cumsum(0)], 1)
    total = int(rows[-1, 3]) if count else 0
    programs = tables.programs(device, shape.programs_each)
    return kernels.Table(staged(rows), total, dtypes, programs, shape)
