"""DTensors and meshes: local shards in, one all_reduce for each mesh dimension out.

What a rank decides here depends on types, meshes, placements and dtypes alone, which all ranks
share. A decision by what lies on one rank (an empty shard, a stride) would make ranks wait for each
other for ever.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastclip.ops.grad_norm.reference import LARGEST_UNSCALED_ORDER

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

    Groups: TypeAlias = tuple[ProcessGroup, ...]


class Layout(NamedTuple):
    """How a DTensor lies on its mesh."""

    groups: Groups  # the ranks among which its elements are divided, one group a mesh dimension
    whole: tuple[Placement, ...] | None  # where ranks hold summands: the placements of the sum
    key: object  # equal where tensors can be measured and reduced together


def is_dtensor(value: object) -> bool:
    """Whether it is a DTensor; imports nothing, since nobody has one before its module is there."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(value) is getattr(module, "DTensor", None)


def layout_of(tensor: DTensor, seen: dict[object, Layout | None]) -> Layout | None:
    """The layout of a DTensor, or None where its local tensors are not for the kernels.

    Args:
        tensor: placed by Shard, Replicate, Partial("sum") or Partial("avg") on each dimension.
        seen: layouts found in this call, since a model has few.
    """
    key = (id(tensor.device_mesh), tensor.placements)
    if key not in seen:
        seen[key] = _layout(tensor.device_mesh, tensor.placements)
    return seen[key]


def _layout(mesh: DeviceMesh, placements: Sequence[Placement]) -> Layout | None:
    from torch.distributed.tensor.placement_types import Partial, Replicate, Shard, _StridedShard

    if mesh.get_coordinate() is None:
        return None  # this rank has no part in it
    groups = []
    whole = list(placements)
    for dim, placement in enumerate(placements):
        if type(placement) in (Shard, _StridedShard):
            if mesh.size(dim) > 1:
                groups.append(mesh.get_group(dim))
        elif type(placement) is Partial and placement.reduce_op in ("sum", "avg"):
            whole[dim] = Replicate()
        elif type(placement) is not Replicate:
            return None
    is_partial = whole != list(placements)
    names = tuple(group.group_name for group in groups)
    return Layout(tuple(groups), tuple(whole) if is_partial else None, (names, is_partial))


def local_of(tensor: DTensor, layout: Layout | None = None) -> Tensor:
    """This rank's elements; with a layout those of the whole value, summed where it is Partial."""
    if layout is not None and layout.whole is not None:
        tensor = tensor.redistribute(placements=layout.whole)
    local = tensor.to_local()
    wait = getattr(local, "wait", None)  # of AsyncCollectiveTensor
    return local if wait is None else wait()


def common_mesh(tensors: Sequence[Tensor]) -> DeviceMesh | None:
    """The mesh that DTensors have in common: where torch's functions return one too."""
    meshes = {t.device_mesh for t in tensors}  # type: ignore[attr-defined]
    return meshes.pop() if len(meshes) == 1 else None


def replicated(norm: Tensor, mesh: DeviceMesh) -> Tensor:
    """A norm that all ranks know, as torch's functions return it for DTensors of one mesh."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(norm, mesh, [Replicate()] * mesh.ndim, run_check=False)


def plain_norm(norm: Tensor) -> Tensor | None:
    """A norm as a plain tensor, the same on all ranks; None for other subclasses of Tensor."""
    if is_dtensor(norm):
        norm = norm.full_tensor()  # type: ignore[attr-defined]
    return norm if type(norm) is Tensor else None


def reduce_norms(
    norms: Sequence[Tensor], groups: Sequence[Groups], p: float, scaled: bool
) -> list[Tensor]:
    """The p-norm, element by element, of what all ranks of some groups hold.

    Args:
        norms: this rank's, float64; a tensor for each entry of `groups`.
        groups: over which each is reduced; none leaves it as it is.
        p: not 0 and not NaN.
        scaled: take powers of norms divided by the largest (for p < 0 the smallest) on any rank,
            at the cost of one more all_reduce: for float64's range, and high orders.

    Returns:
        The norms, of equal bits on all ranks of a group.
    """
    if not any(groups):
        return list(norms)
    if math.isinf(p):
        return _extremes(norms, groups, math.copysign(1.0, p))
    scales = [torch.ones_like(norm) for norm in norms]
    if scaled or abs(p) > LARGEST_UNSCALED_ORDER:
        scales = _extremes(norms, groups, math.copysign(1.0, p))
        scales = [torch.where(s.isfinite() & (s > 0), s, 1.0) for s in scales]
    powers = [(norm / scale) ** p for norm, scale in zip(norms, scales, strict=True)]
    sums = _all_reduce(powers, groups, largest=False)
    # A norm that no other rank shares is not taken to a power and back.
    return [
        total ** (1 / p) * scale if of else norm
        for norm, total, scale, of in zip(norms, sums, scales, groups, strict=True)
    ]


def _extremes(norms: Sequence[Tensor], groups: Sequence[Groups], sign: float) -> list[Tensor]:
    """The largest (sign 1) or the smallest (-1); NaN where any is. MAX alone may lose a NaN."""
    sent = [
        torch.stack([(sign * n).where(~n.isnan(), -math.inf), n.isnan().double()]) for n in norms
    ]
    found = _all_reduce(sent, groups, largest=True)
    return [torch.where(is_nan > 0, math.nan, sign * largest) for largest, is_nan in found]


def _all_reduce(values: Sequence[Tensor], groups: Sequence[Groups], largest: bool) -> list[Tensor]:
    """Sums (or maxima) over each value's groups: one all_reduce for each group and device."""
    import torch.distributed as dist

    found = list(values)
    rows: dict[tuple[str, torch.device], list[int]] = {}
    named: dict[str, ProcessGroup] = {}
    for i, of in enumerate(groups):
        for group in of:
            named[group.group_name] = group
            rows.setdefault((group.group_name, values[i].device), []).append(i)
    for (name, _), members in rows.items():
        flat = torch.cat([found[i].flatten() for i in members])
        operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        dist.all_reduce(flat, operation, group=named[name])
        pieces = flat.split([found[i].numel() for i in members])
        for i, piece in zip(members, pieces, strict=True):
            found[i] = piece.view_as(found[i])
    return found
