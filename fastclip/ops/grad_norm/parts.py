"""Lists for several backends of `grad_norm`: several devices, DTensors, tensors with gaps, repeats.

The list is split into parts, each of one device and one way of being spread over ranks. The total
norm is the norm of the parts' norms, and every part is scaled by the same factor.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastclip.ops.grad_norm import sharded
from fastclip.ops.grad_norm.part import BackendOf, Part
from fastclip.ops.grad_norm.reference import Backend, factor_of, moved, norm_of
from fastclip.ops.grad_norm.sorting import Group, Sorted, sort
from fastclip.ops.grad_norm.tensor_list import (
    DEVICE_TYPES,
    DTYPES,
    is_plain,
    is_scalar,
    is_writable,
    promoted,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_FLOAT64 = 1 << DTYPES.index(torch.float64)


class GradParts:
    """A list in parts: their norm, and their scaling in place. As cpu.CpuGrads.

    Ranks agree on every method but `local_norms`; those that measure are collective where a tensor
    is spread over ranks. Only a part on the CPU, beside a first tensor on a GPU, waits for it.
    An error that only this rank has is raised after what the others wait for.
    """

    def __init__(
        self,
        parts: list[Part],
        backend_of: BackendOf,
        *,
        mesh: DeviceMesh | None = None,
        has_empty: bool = False,
        error: str | None = None,
    ) -> None:
        self._parts = parts
        self._backend_of = backend_of
        self._mesh = mesh  # all tensors' own
        self._has_empty = has_empty
        self._error = error
        self._count = sum(len(part.locals) for part in parts)
        first = next((part for part in parts if any(0 in run for run in part.indices)), parts[0])
        self.device = first.device
        self.dtype = promoted(functools.reduce(int.__or__, (part.dtypes for part in parts)))
        spread = [part for part in parts if part.layout is not None]
        self._scaled = any((part.dtypes | part.awaited) & _FLOAT64 for part in spread)
        self._known: dict[float, Tensor] = {}  # p: the unrounded norm

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        """Whether there is something to do: where nothing lies here, other ranks may have some."""
        return self._count > 0 or any(part.layout is not None for part in self._parts)

    def has_norm(self, p: float) -> bool:
        """Whether this p is defined for these tensors; torch raises for inf of an empty tensor."""
        has = p != 0 and not math.isnan(p) and (0 < p < math.inf or not self._has_empty)
        if not has:
            self._require_sound()  # torch would read what was freed
        return has

    def takes(self, total_norm: Tensor) -> bool:
        """Whether `clip_by_` reads this norm as torch would."""
        return is_scalar(total_norm)

    def exact_norm(self, p: float) -> Tensor:
        """The unrounded p-norm of all elements: 0-d, float64, on the first tensor's device."""
        if p not in self._known:
            norms = [part.wholes(self._backend_of).norm(p) for part in self._parts]
            norms = self._reduced(norms, p)
            if len(norms) > 1:
                norms = [norm_of(torch.stack([moved(n, self.device) for n in norms]), p)]
            self._known[p] = norms[0]
        return self._known[p]

    def total_norm(self, p: float) -> Tensor:
        """The p-norm in the tensors' promoted dtype; a replicated DTensor where torch gives one."""
        total = self.exact_norm(p).to(self.dtype)
        if not self._count and not total:  # no rank has a gradient that is not zero
            return torch.tensor(0.0)
        return total if self._mesh is None else sharded.replicated(total, self._mesh)

    def norms(self, *orders: float) -> Tensor:
        """The norm of each tensor for each order: [orders, tensors], float64; a read for each."""
        wholes = [part.wholes(self._backend_of) for part in self._parts]
        rows = [self._reduced([part.norms(p) for part in wholes], p) for p in orders]
        return self._in_order(rows)

    def local_norms(self, *orders: float) -> Tensor:
        """As `norms`, of what lies on this rank, and without asking another."""
        self._require_sound()
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
        return sharded.reduce_norms(norms, groups, p, self._scaled, self._error)

    def _in_order(self, rows: list[list[Tensor]]) -> Tensor:
        flat = torch.stack([torch.cat([moved(n, self.device) for n in row]) for row in rows])
        runs = [run for part in self._parts for run in part.indices]
        if len(runs) <= 1:
            return flat
        order = torch.tensor(list(itertools.chain(*runs))).argsort()
        return flat[:, moved(order, self.device)]

    def _each(self, number: Tensor) -> Iterator[tuple[Part, Tensor]]:
        self._require_sound()
        self._known.clear()
        for part in self._parts:
            yield part, moved(number, part.device)

    def _require_sound(self) -> None:
        if self._error is not None:
            raise ValueError(self._error)


@torch.no_grad()
def collect(tensors: Sequence[Tensor], take_grads: bool, backend_of: BackendOf) -> GradParts | None:
    """The list in parts; None where torch's own functions are to have it.

    Args:
        tensors: of any device and any type; with `take_grads` parameters.
        take_grads: take their gradients that exist.
        backend_of: gives some plain tensors of one device their backend, or None.

    Raises:
        ValueError: the storage of a tensor was freed, and no other rank waits for this one.
    """
    found = sort(tensors, take_grads)
    is_spread = any(group.mesh is not None for group in found.groups)
    if found.error is not None and not is_spread:
        raise ValueError(found.error)
    parts = _parts(found, is_spread)
    if parts is None:
        return None
    by_kernels = [part.share(part.locals, backend_of) for part in parts]
    if not parts or (not any(by_kernels) and not is_spread):
        return None
    has_empty = any(
        tensor.numel() == 0
        for group in found.groups
        for tensor in (*(group.tensors[row] for row in group.empty), *group.absent)
    )
    meshes = {group.mesh for group in found.groups}
    mesh = meshes.pop() if len(meshes) == 1 else None
    return GradParts(parts, backend_of, mesh=mesh, has_empty=has_empty, error=found.error)


def _parts(found: Sorted, is_spread: bool) -> list[Part] | None:
    """The groups as parts; None where torch is to have one. With DTensors, ranks agree on that."""
    parts: dict[object, Part] = {}
    freed = set(found.freed)
    for group in found.groups:
        layout = None
        if group.mesh is not None and group.placements is not None:
            layout = sharded.layout_on(group.mesh, group.placements)
            if layout is None:
                return None
        if group.dtypes:
            _at(parts, group.locals[0].device, layout).add(*group[2:7])
        elif not _add_one_by_one(parts, group, layout, freed, is_spread):
            return None
        for parameter in group.absent:
            local = parameter._local_tensor  # type: ignore[attr-defined]
            if local.dtype not in DTYPES or local.device.type not in DEVICE_TYPES:
                return None
            part = _at(parts, local.device, layout)
            part.awaited |= 1 << DTYPES.index(local.dtype)
            part.dtypes |= 0 if group.locals else part.awaited
    for part in parts.values():
        part.settle()
    return list(parts.values())


def _add_one_by_one(
    parts: dict[object, Part],
    group: Group,
    layout: sharded.Layout | None,
    freed: set[int],
    is_spread: bool,
) -> bool:
    """Adds a group that no kernel has looked at; returns whether it could."""
    for row, (index, tensor, local) in enumerate(
        zip(group.indices, group.tensors, group.locals, strict=True)
    ):
        wait = getattr(local, "wait", None)  # of AsyncCollectiveTensor
        local = local if wait is None else wait()
        if not is_plain(local) or not (is_spread or is_writable(local)):
            return False
        if not local.numel():
            group.empty.append(row)
        if index in freed:  # whoever reads it would read another's memory
            local = torch.full((), math.nan, dtype=local.dtype, device=local.device).expand(
                local.shape
            )
        part = _at(parts, local.device, layout)
        bits = 1 << DTYPES.index(local.dtype)
        part.add(range(index, index + 1), [tensor], [local], range(not local.numel()), bits)
    return True


def _at(parts: dict[object, Part], device: torch.device, layout: sharded.Layout | None) -> Part:
    key = device, None if layout is None else layout.key
    return parts.setdefault(key, Part(device, layout))


def _clip_by(backend: Backend, max_norm: float, norm: Tensor) -> None:
    backend.clip_by_(max_norm, norm)


def _scale(backend: Backend, factor: Tensor) -> None:
    backend.scale_(factor)
