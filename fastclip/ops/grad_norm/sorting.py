"""A list of DTensors and plain tensors, sorted by device and by how they are spread over ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fastclip import native

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement


class Group(NamedTuple):
    """Tensors of one device, one mesh and one tuple of placements."""

    mesh: DeviceMesh | None  # None for plain tensors
    placements: tuple[Placement, ...] | None
    indices: Sequence[int]  # in the list
    tensors: list[Tensor]
    locals: list[Tensor]  # what lies here of each
    empty: list[int]  # rows of `locals` without elements
    dtypes: int  # of `locals`, as bits of tensor_list.DTYPES; 0: no kernel has looked at them
    absent: list[Tensor]  # parameters of this layout that have no gradient here


class Sorted(NamedTuple):
    """The groups, by first appearance; and what is wrong with tensors whose storage was freed."""

    groups: list[Group]
    freed: list[int]  # indices in the list
    error: str | None


def dtensor_class() -> type | None:
    """DTensor, or None: imports nothing, since nobody has one before its module is there."""
    module = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)


def is_dtensor(value: object) -> bool:
    """Whether it is a DTensor."""
    return type(value) is dtensor_class()


def sort(tensors: Sequence[Tensor], take_grads: bool) -> Sorted:
    """Sorts tensors, or with `take_grads` the gradients of parameters that have one.

    Where a DTensor parameter has none on this rank, another rank may have one: its layout is listed
    all the same, so that this rank takes part in the reduction.
    """
    if native.core is None:
        return Sorted(_by_layout(tensors, take_grads), [], None)
    groups, freed, error = native.core.sort_tensors(tensors, take_grads, dtensor_class())
    return Sorted([Group(*row) for row in groups], freed, error)


def _by_layout(tensors: Sequence[Tensor], take_grads: bool) -> list[Group]:
    """csrc/bindings/grad_norm/sorting.cpp in Python, but that it looks at no local tensor."""
    groups: dict[object, Group] = {}
    index = 0
    for item in list(tensors):
        tensor = item.grad if take_grads else item
        absent = take_grads and tensor is None
        if absent and not (is_dtensor(item) and item.requires_grad):
            continue
        seen = item if absent else tensor
        spec = seen._spec if is_dtensor(seen) else None  # type: ignore[union-attr]
        mesh, placements = (None, None) if spec is None else (spec.mesh, spec.placements)
        key = id(mesh), placements
        if key not in groups:
            groups[key] = Group(mesh, placements, [], [], [], [], 0, [])
        if absent:
            groups[key].absent.append(item)
            continue
        groups[key].indices.append(index)  # type: ignore[attr-defined]
        groups[key].tensors.append(tensor)  # type: ignore[arg-type]
        groups[key].locals.append(tensor if spec is None else tensor._local_tensor)  # type: ignore[union-attr,arg-type]
        index += 1
    return list(groups.values())
