"""`grad_norm` by Triton: GPUs without the CUDA kernels (no nvcc at install, AMD, Intel)."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastclip.kernels.grad_norm import launch as kernels
from fastclip.ops.grad_norm.gpu import GpuGrads

_TABLES_KEPT = 16
_ROWS_FOR_GRAPHS = 1 << 15
_INTERPRETED_PROGRAMS = 4


class Table(NamedTuple):
    """The kernels' first arguments."""

    rows: Tensor  # [tensors, 4] int64: address, elements, dtype, chunks up to and with this tensor
    chunks: int
    dtypes: int
    programs: int


_tables: OrderedDict[tuple[Any, ...], Table] = OrderedDict()
_graph_rows: list[Tensor] = []  # page-locked, set aside by the first call outside a capture
_graph_rows_used = 0


class TritonGrads(GpuGrads):
    """By fastclip/kernels/grad_norm.py; the same tensors at the same addresses upload no table."""

    def _norm(
        self,
        p: float,
        max_norm: float,
        scale: bool,
        total: Tensor | None,
        each: Tensor | None,
        optimizer: Tensor | None,
    ) -> Tensor:
        total = self._number() if total is None else total
        if optimizer is None:
            optimizer = torch.empty(2, dtype=torch.float32, device=self._device)
        with _current(self._device):
            table = self._table()
            work = kernels.launch_norm(*table, p, max_norm, total, optimizer, each)
            if scale:
                kernels.launch_scale(*table, max_norm, work[1])
        return work[1]

    def _scale(self, max_norm: float, norm: Tensor) -> None:
        with _current(self._device):
            if norm.device != self._device:
                norm = torch.full((), float(norm), dtype=torch.float64, device=self._device)
            kernels.launch_scale(*self._table(), max_norm, norm)

    def _table(self) -> Table:
        addresses, device, dtypes = self._list.addresses(), self._device, self._list.dtypes
        if device.type == "cpu":  # Triton's interpreter
            return _made(addresses, dtypes, device, Tensor.clone)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return _made(addresses, dtypes, device, _upload_in_graph)
        if not _graph_rows:
            rows = torch.empty(_ROWS_FOR_GRAPHS, 4, dtype=torch.int64, pin_memory=True)
            _graph_rows.append(rows)
        # A stream of its own each: one must not read what another has yet to upload.
        key = device, torch.get_device_module(device).current_stream(device), addresses
        table = _tables.pop(key, None) or _made(addresses, dtypes, device, Tensor.pin_memory)
        _tables[key] = table
        while len(_tables) > _TABLES_KEPT:
            _tables.popitem(last=False)
        return table


def _made(addresses: bytes, dtypes: int, device: torch.device, staged: Any) -> Table:
    count = len(addresses) // 24
    memory = bytearray(addresses or bytes(24))
    found = torch.frombuffer(memory, dtype=torch.int64).view(-1, 3)[:count]
    chunks = (found[:, 1:2] + kernels.CHUNK.value - 1) // kernels.CHUNK.value
    rows = torch.cat([found, chunks.cumsum(0)], 1)
    total = int(rows[-1, 3]) if count else 0
    return Table(staged(rows).to(device, non_blocking=True), total, dtypes, _programs(device))


def _upload_in_graph(rows: Tensor) -> Tensor:
    """Page-locked rows that stay as they are: the graph copies them again whenever it runs."""
    global _graph_rows_used
    if not _graph_rows:
        raise RuntimeError("call fastclip once before capturing it in a CUDA graph")
    first, _graph_rows_used = _graph_rows_used, _graph_rows_used + len(rows)
    if _graph_rows_used > _ROWS_FOR_GRAPHS:
        raise RuntimeError(f"CUDA graphs hold over {_ROWS_FOR_GRAPHS} gradients to clip by Triton")
    return _graph_rows[0][first:_graph_rows_used].copy_(rows)


def _current(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Makes the device current, which is where Triton launches."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device.index)


@functools.cache
def _programs(device: torch.device) -> int:
    if device.type == "cpu":
        return _INTERPRETED_PROGRAMS
    properties = torch.get_device_module(device).get_device_properties(device)
    units = getattr(properties, "multi_processor_count", None) or properties.max_compute_units
    return kernels.PROGRAMS_EACH * units
