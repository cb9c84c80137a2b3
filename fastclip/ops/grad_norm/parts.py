"""Lists for several backends of `grad_norm`: several devices, DTensors, tensors with gaps, repeats.

The list is split into parts, each of one device and one way of being spread over ranks. The total
norm is the norm of the parts' norms, and every part is scaled by the same factor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastclip.ops.grad_norm import sharded
from fastclip.ops.grad_norm.reference import Backend, TorchGrads, factor_of, moved, norm_of
from fastclip.ops.grad_norm.tensor_list import DTYPES, is_scalar, layers

_DEVICE_TYPES = ("cpu", "cuda", "xpu")
BackendOf: TypeAlias = Callable[[list[Tensor]], Backend | None]  # some plain tensors of one device


@dataclass
class Part:
    """Tensors of one device, spread in one way over ranks."""

    device: torch.device
    groups: tuple[Any, ...]  # the ranks that hold the rest of them, a process group a dimension
    indices: list[int] = field(default_factory=list)  # in the whole list
    locals: list[Tensor] = field(default_factory=list)
    dtensors: list[tuple[Any, sharded.Layout]] = field(default_factory=list)
    backends: list[tuple[Backend, list[int]]] = field(default_factory=list)  # and their rows

    def share(self, tensors: Sequence[Tensor], backend_of: BackendOf) -> bool:
        """Shares out the tensors; returns whether a kernel has some. Empty shards have no backend.

        What overlaps on a GPU has backends one after the other: scaled at the same time, a product
        would be lost.
        """
        some = [row for row, t in enumerate(tensors) if t.numel() or not self.dtensors]
        if (backend := backend_of([tensors[row] for row in some]) if some else None) is not None:
            self.backends.append((backend, some))
            return True
        rows: dict[tuple[bool, int], list[int]] = {}
        on_cpu = self.device.type == "cpu"  # whose backends see to it themselves
        numbers = [0] * len(some) if on_cpu else layers([tensors[row] for row in some])
        for row, layer in zip(some, numbers, strict=True):
            rows.setdefault((backend_of([tensors[row]]) is None, layer), []).append(row)
        for (by_torch, _), of in rows.items():
            mine = [tensors[row] for row in of]
            found = None if by_torch else backend_of(mine)
            self.backends.append((TorchGrads(mine) if found is None else found, of))
        return not all(by_torch for by_torch, _ in rows)

    @torch.no_grad()
    def wholes(self, backend_of: BackendOf) -> Part:
        """This part with its sums over ranks in place of summands: what the norm is of."""
        if not self.dtensors or self.dtensors[0][1].whole is None:
            return self
        whole = Part(self.device, self.groups, dtensors=self.dtensors)
        whole.locals = [sharded.local_of(*entry) for entry in self.dtensors]
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
        shape = len(self.locals)
        norms = torch.full((shape,), _identity(p), dtype=torch.float64, device=self.device)
        for backend, rows in self.backends:
            where = moved(torch.tensor(rows), self.device)
            norms.index_copy_(0, where, _able(backend, rows, self.locals, p).norms(p)[0])
        return norms

    def write(self, change: Callable[[Backend], None]) -> None:
        """Has every backend change its tensors; the version of a DTensor moves with its shard's."""
        for backend, rows in self.backends:
            first = self.locals[rows[0]]
            counted = bool(self.dtensors) and not first.is_inference()
            before = first._version if counted else 0
            change(backend)
            if counted and first._version != before:
                torch.autograd.graph.increment_version([self.dtensors[row][0] for row in rows])


class GradParts:
    """A list in parts: their norm, and their scaling in place. As cpu.CpuGrads.

    Ranks agree on every method but `local_norms`; those that measure are collective where a tensor
    is spread over ranks. Only a part on the CPU, beside a first tensor on a GPU, waits for it.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        parts: list[Part],
        backend_of: BackendOf,
    ) -> None:
        self._parts = parts
        self._backend_of = backend_of
        self._count = len(tensors)
        self.device = next(part.device for part in parts if 0 in part.indices)
        dtypes = [{t.dtype for t in part.locals} for part in parts]
        self.dtype = functools.reduce(torch.promote_types, set().union(*dtypes))
        self._has_empty = any(t.numel() == 0 for t in tensors)
        spread = [part for part in parts if part.dtensors]
        self._scaled = any(t.dtype == torch.float64 for part in spread for t in part.locals)
        self._mesh = sharded.common_mesh(tensors) if len(spread) == len(parts) else None
        self._known: dict[float, Tensor] = {}  # p: the unrounded norm

    def __len__(self) -> int:
        return self._count

    def has_norm(self, p: float) -> bool:
        """Whether this p is defined for these tensors; torch raises for inf of an empty tensor."""
        return p != 0 and not math.isnan(p) and (0 < p < math.inf or not self._has_empty)

    def takes(self, total_norm: Tensor) -> bool:
        """Whether `clip_by_` reads this norm as torch would."""
        return is_scalar(total_norm)

    def exact_norm(self, p: float) -> Tensor:
        """The unrounded p-norm of all elements: 0-d, float64, on the first tensor's device."""
        if p not in self._known:
            norms = [part.wholes(self._backend_of).norm(p).view(1) for part in self._parts]
            norms = self._reduced(norms, p)
            self._known[p] = norm_of(torch.cat([moved(n, self.device) for n in norms]), p)
        return self._known[p]

    def total_norm(self, p: float) -> Tensor:
        """The p-norm in the tensors' promoted dtype; a replicated DTensor where torch gives one."""
        total = self.exact_norm(p).to(self.dtype)
        return total if self._mesh is None else sharded.replicated(total, self._mesh)

    def norms(self, *orders: float) -> Tensor:
        """The norm of each tensor for each order: [orders, tensors], float64; a read for each."""
        wholes = [part.wholes(self._backend_of) for part in self._parts]
        rows = [self._reduced([part.norms(p) for part in wholes], p) for p in orders]
        return self._in_order(rows)

    def local_norms(self, *orders: float) -> Tensor:
        """As `norms`, of what lies on this rank, and without asking another."""
        return self._in_order([[part.norms(p) for part in self._parts] for p in orders])

    def clip_(self, max_norm: float, p: float) -> Tensor:
        """Scales to at most `max_norm`; returns the norm before."""
        total = self.total_norm(p)
        self.clip_by_(max_norm, self.exact_norm(p))
        return total

    def clip_by_(self, max_norm: float, total_norm: Tensor) -> None:
        """Scales by min(1, max_norm / (total_norm + 1e-6)), for a norm known before."""
        for part, norm in self._each(total_norm.detach()):
            part.write(functools.partial(_clip_by, max_norm=max_norm, norm=norm))

    def scale_(self, factor: Tensor) -> None:
        """Multiplies every element by a 0-d factor, whatever it is."""
        for part, near in self._each(factor.detach()):
            part.write(functools.partial(_scale, factor=near))

    def norm_and_factor(self, max_norm: float, p: float) -> tuple[Tensor, Tensor]:
        """(the norm, the factor that clips to `max_norm`, float64)"""
        return self.total_norm(p), factor_of(max_norm, self.exact_norm(p))

    def _reduced(self, norms: list[Tensor], p: float) -> list[Tensor]:
        groups = [part.groups for part in self._parts]
        return sharded.reduce_norms(norms, groups, p, self._scaled)

    def _in_order(self, rows: list[list[Tensor]]) -> Tensor:
        order = torch.tensor([i for part in self._parts for i in part.indices]).argsort()
        flat = [torch.cat([moved(n, self.device) for n in row]) for row in rows]
        return torch.stack(flat)[:, moved(order, self.device)]

    def _each(self, number: Tensor) -> Iterator[tuple[Part, Tensor]]:
        self._known.clear()
        for part in self._parts:
            yield part, moved(number, part.device)


@torch.no_grad()
def collect(tensors: Sequence[Tensor], backend_of: BackendOf) -> GradParts | None:
    """The list in parts; None where torch's own functions are to have it.

    Args:
        tensors: of any device and any type.
        backend_of: gives some plain tensors of one device their backend, or None.
    """
    parts: dict[object, Part] = {}
    layouts: dict[object, sharded.Layout | None] = {}
    for i, tensor in enumerate(tensors):
        layout, local = None, tensor
        if sharded.is_dtensor(tensor):
            layout = sharded.layout_of(tensor, layouts)  # type: ignore[arg-type]
            if layout is None:
                return None
            local = sharded.local_of(tensor)  # type: ignore[arg-type]
        if not _plain(local):
            return None
        key = local.device, None if layout is None else layout.key
        if (part := parts.get(key)) is None:
            part = parts[key] = Part(local.device, () if layout is None else layout.groups)
        part.indices.append(i)
        part.locals.append(local)
        if layout is not None:
            part.dtensors.append((tensor, layout))
    by_kernels = [part.share(part.locals, backend_of) for part in parts.values()]
    if not any(by_kernels) and not layouts:
        return None
    return GradParts(tensors, list(parts.values()), backend_of)


def _clip_by(backend: Backend, max_norm: float, norm: Tensor) -> None:
    backend.clip_by_(max_norm, norm)


def _scale(backend: Backend, factor: Tensor) -> None:
    backend.scale_(factor)


def _able(backend: Backend, rows: list[int], tensors: list[Tensor], p: float) -> Backend:
    return backend if backend.has_norm(p) else TorchGrads([tensors[row] for row in rows])


def _identity(p: float) -> float:
    return 0.0 if p > 0 else math.inf


def _plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.dtype in DTYPES
        and tensor.device.type in _DEVICE_TYPES
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not tensor._is_zerotensor()  # immutable, says torch
        and torch._debug_has_internal_overlap(tensor) != 1  # torch says what is wrong with it
    )
