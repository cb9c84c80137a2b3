"""Tables of tensors where Triton's kernels read them: on the device, kept, and in graphs."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

_TABLES_KEPT = 16
_LEAST_RESERVE = 1 << 15  # rows
_INTERPRETED_PROGRAMS = 4
_LEAST_ROW_BYTES = 24  # of a key, for each row

Staged: TypeAlias = Callable[[Tensor], Tensor]  # rows on the CPU -> where kernels read them
_Table = TypeVar("_Table")
_tables: OrderedDict[tuple[object, ...], Any] = OrderedDict()


def is_for_triton(device: torch.device) -> bool:
    """Whether Triton has kernels for a device; the interpreter's tests put the CPU in here."""
    return device.type in ("cuda", "xpu")


def kept(key: bytes, device: torch.device, make: Callable[[Staged], _Table]) -> _Table:
    """What `make` makes of the key, or has lately made of it: then nothing is uploaded.

    Args:
        key: addresses, and all else that the table depends on.
        device: the current one.
        make: gets what puts rows ([rows, 4] int64) where kernels read them.
    """
    if device.type == "cpu":  # Triton's interpreter
        return make(Tensor.clone)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return make(functools.partial(in_graph, key=key, device=device, reserve=_reserve))
    if device.type == "cuda":
        _reserve.grow(len(key) // _LEAST_ROW_BYTES)
    # A stream of its own each: one must not read what another has yet to upload.
    place = device, torch.get_device_module(device).current_stream(device), key
    table = _tables.pop(place, None)
    if table is None:
        table = make(lambda rows: rows.pin_memory().to(device, non_blocking=True))
    _tables[place] = table
    while len(_tables) > _TABLES_KEPT:
        _tables.popitem(last=False)
    return cast(_Table, table)


class Reserve:
    """Page-locked rows, set aside while no graph is captured: a graph copies its own again whenever
    it runs, so they stay as they are."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._free = torch.empty(0, 4, dtype=torch.int64)
        self._kept: dict[bytes, Tensor] = {}

    def grow(self, count: int) -> None:
        """Makes room for some graphs of so many rows each."""
        if len(self._free) < count or not self._free.numel():
            size = max(_LEAST_RESERVE, 4 * count)
            self._free = torch.empty(size, 4, dtype=torch.int64, pin_memory=self._pinned)

    def keep(self, key: bytes, rows: Tensor) -> Tensor | None:
        """The rows in reserved memory, once for all graphs of one key; None: no room."""
        if key not in self._kept:
            if len(self._free) < len(rows):
                return None
            self._kept[key] = self._free[: len(rows)].copy_(rows)
            self._free = self._free[len(rows) :]
        return self._kept[key]


_reserve = Reserve(pinned=True)


def in_graph(rows: Tensor, key: bytes, device: torch.device, reserve: Reserve) -> Tensor:
    """Rows on the device for a graph that is captured now: copied from page-locked memory.

    Where no room is left there, launches write them that hold the numbers themselves, some 96 in
    each: the graph runs them again, where one copy would do, but no number of rows is too many.
    """
    room = reserve.keep(key, rows)
    if room is not None:
        return room.to(device, non_blocking=True)
    table = torch.zeros(rows.shape, dtype=torch.int64, device=device)
    torch._foreach_add_(list(table.flatten().unbind()), rows.flatten().tolist())
    return table


def current(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Makes the device current, which is where Triton launches."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device.index)


@functools.cache
def programs(device: torch.device, each: int) -> int:
    """The programs of a launch that fills a device with `each` on a multiprocessor."""
    if device.type == "cpu":
        return _INTERPRETED_PROGRAMS
    properties = torch.get_device_module(device).get_device_properties(device)
    units = getattr(properties, "multi_processor_count", None) or properties.max_compute_units
    return each * units
