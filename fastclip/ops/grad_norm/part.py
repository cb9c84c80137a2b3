"""A part of a list: tensors of one device that are spread over ranks in one way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fastclip.ops.grad_norm import sharded
from fastclip.ops.grad_norm.reference import Backend, TorchGrads, moved, norm_of
from fastclip.ops.grad_norm.tensor_list import layers

BackendOf: TypeAlias = Callable[[list[Tensor]], Backend | None]  # some plain tensors of one device


@dataclass
class Part:
    """Tensors of one device, spread in one way over ranks."""

    device: torch.device
    layout: sharded.Layout | None  # None for plain tensors
    indices: list[Sequence[int]] = field(default_factory=list)  # in the whole list, run by run
    locals: list[Tensor] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)  # which `locals` are the local tensors of
    empty: set[int] = field(default_factory=set)  # rows without elements
    dtypes: int = 0  # bits of tensor_list.DTYPES
    awaited: int = 0  # the same, of gradients that this rank lacks and others may have
    backends: list[tuple[Backend, Sequence[int]]] = field(default_factory=list)  # and their rows

    @property
    def groups(self) -> sharded.Groups:
        """The ranks that hold the rest of them, a process group for each dimension."""
        return () if self.layout is None else self.layout.groups

    def add(
        self,
        indices: Sequence[int],
        tensors: list[Tensor],
        locals: list[Tensor],
        empty: Sequence[int],
        dtypes: int,
    ) -> None:
        """Adds tensors, of the same device and layout."""
        rows = len(self.locals)
        self.indices.append(indices)
        self.locals += locals
        self.tensors += tensors
        self.empty.update(rows + row for row in empty)
        self.dtypes |= dtypes

    def settle(self) -> None:
        """Puts the tensors in the list's order, which all ranks share: they came by groups, which a
        stride on this rank may have split."""
        if len(self.indices) < 2:
            return
        order = list(itertools.chain(*self.indices))
        rows = sorted(range(len(order)), key=order.__getitem__)
        self.indices = [[order[row] for row in rows]]
        self.locals = [self.locals[row] for row in rows]
        self.tensors = [self.tensors[row] for row in rows]
        self.empty = {new for new, row in enumerate(rows) if row in self.empty}

    def share(self, tensors: Sequence[Tensor], backend_of: BackendOf) -> bool:
        """Shares out the tensors; returns whether a kernel has some. Empty shards have no backend.

        What overlaps on a GPU has backends one after the other: scaled at the same time, a product
        would be lost.
        """
        some: Sequence[int] = range(len(tensors))
        if self.layout is not None and self.empty:
            some = [row for row in some if row not in self.empty]
        mine = list(tensors) if len(some) == len(tensors) else [tensors[row] for row in some]
        if (backend := backend_of(mine) if mine else None) is not None:
            self.backends.append((backend, some))
            return True
        rows: dict[tuple[bool, int], list[int]] = {}
        on_cpu = self.device.type == "cpu"  # whose backends see to it themselves
        numbers = [0] * len(some) if on_cpu else layers(mine)
        for row, layer in zip(some, numbers, strict=True):
            rows.setdefault((backend_of([tensors[row]]) is None, layer), []).append(row)
        for (by_torch, _), of in rows.items():
            these = [tensors[row] for row in of]
            found = None if by_torch else backend_of(these)
            self.backends.append((TorchGrads(these) if found is None else found, of))
        return not all(by_torch for by_torch, _ in rows)

    @torch.no_grad()
    def wholes(self, backend_of: BackendOf) -> Part:
        """This part with its sums over ranks in place of summands: what the norm is of."""
        if self.layout is None or not self.layout.summands or not self.locals:
            return self
        whole = Part(self.device, self.layout, empty=self.empty)
        whole.locals = sharded.summed(self.locals, self.layout)
        whole.share(whole.locals, backend_of)
        return whole

    def norm(self, p: float) -> Tensor:
        """The p-norm of what lies here: 0-d, float64."""
        found = [
            _able(backend, rows, self.locals, p).exact_norm(p) for backend, rows in self.backends
        ]
        if not found:
            return torch.full((), _identity(p), dtype=torch.float64, device=self.device)
        return found[0] if len(found) == 1 else norm_of(torch.stack(found), p)

    def norms(self, p: float) -> Tensor:
        """The p-norm of what lies here of each tensor: [tensors], float64."""
        count = len(self.locals)
        if len(self.backends) == 1 and len(self.backends[0][1]) == count:
            backend, rows = self.backends[0]
            return _able(backend, rows, self.locals, p).norms(p)[0]
        norms = torch.full((count,), _identity(p), dtype=torch.float64, device=self.device)
        for backend, rows in self.backends:
            where = moved(torch.tensor(rows), self.device)
            norms.index_copy_(0, where, _able(backend, rows, self.locals, p).norms(p)[0])
        return norms

    def write(self, change: Callable[[Backend], None]) -> None:
        """Has every backend change its tensors; the version of a DTensor moves with its shard's."""
        for backend, rows in self.backends:
            first = self.locals[rows[0]]
            counted = self.layout is not None and not first.is_inference()
            before = first._version if counted else 0
            change(backend)
            if counted and first._version != before:
                some = len(rows) < len(self.tensors)
                moving = [self.tensors[row] for row in rows] if some else self.tensors
                torch.autograd.graph.increment_version(moving)


def _able(backend: Backend, rows: Sequence[int], tensors: list[Tensor], p: float) -> Backend:
    return backend if backend.has_norm(p) else TorchGrads([tensors[row] for row in rows])


def _identity(p: float) -> float:
    return 0.0 if p > 0 else math.inf
