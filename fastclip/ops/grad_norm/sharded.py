"""DTensors and meshes: how tensors lie on ranks, and the reduction of norms over those.

What a rank decides here depends on types, meshes, placements and dtypes alone, which all ranks
share. A decision by what lies on one rank (an empty shard, a stride) would make ranks wait for each
other for ever. Collectives are torch's functional ones, in the order of their groups' names: so
debuggers count them, and no two ranks wait for each other's other group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastclip.ops.grad_norm.reference import LARGEST_UNSCALED_ORDER
from fastclip.ops.grad_norm.sorting import is_dtensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement

    Groups: TypeAlias = tuple[ProcessGroup, ...]


class Layout(NamedTuple):
    """How tensors lie on ranks."""

    groups: Groups  # the ranks among which elements are divided, one group a mesh dimension
    summands: tuple[tuple[ProcessGroup, str], ...]  # where ranks hold summands; "sum" or "avg"

    @property
    def key(self) -> object:
        """Equal where tensors can be measured and reduced together."""
        summands = tuple((group.group_name, operation) for group, operation in self.summands)
        return tuple(group.group_name for group in self.groups), summands


def layout_on(mesh: DeviceMesh, placements: Sequence[Placement]) -> Layout | None:
    """The layout of DTensors, or None where their local tensors are not for the kernels.

    Those are placed by Shard, Replicate, Partial("sum") or Partial("avg") on each dimension.
    """
    from torch.distributed.tensor.placement_types import Partial, Replicate, Shard, _StridedShard

    if mesh.get_coordinate() is None:
        return None  # this rank has no part in it
    groups, summands = [], []
    for dim, placement in enumerate(placements):
        if type(placement) in (Shard, _StridedShard):
            if mesh.size(dim) > 1:
                groups.append(mesh.get_group(dim))
        elif type(placement) is Partial and placement.reduce_op in ("sum", "avg"):
            summands.append((mesh.get_group(dim), placement.reduce_op))
        elif type(placement) is not Replicate:
            return None
    return Layout(tuple(groups), tuple(summands))


def replicated(norm: Tensor, mesh: DeviceMesh) -> Tensor:
    """A norm that all ranks know, as torch's functions return it for DTensors of one mesh."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(norm, mesh, [Replicate()] * mesh.ndim, run_check=False)


def plain_norm(norm: Tensor) -> Tensor | None:
    """A norm as a plain tensor, the same on all ranks; None for other subclasses of Tensor."""
    if is_dtensor(norm):
        norm = norm.full_tensor()  # type: ignore[attr-defined]
    return norm if type(norm) is Tensor else None


def all_reduce(tensor: Tensor, operation: str, group: ProcessGroup) -> Tensor:
    """The sum ("sum") or the largest ("max") over a group, as a new tensor."""
    functional = torch.ops._c10d_functional
    queued = functional.all_reduce.default(tensor, operation, group.group_name)
    return functional.wait_tensor.default(queued)


def summed(locals: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """The sums over ranks of local tensors that are summands: one all_reduce a dimension and dtype.

    Args:
        locals: of one device; on all ranks of a group of the same shapes and dtypes.
        layout: its `summands` say what they are.
    """
    rows: dict[torch.dtype, list[int]] = {}
    for row, local in enumerate(locals):
        rows.setdefault(local.dtype, []).append(row)
    found = list(locals)
    for members in rows.values():
        flat = torch.cat([locals[row].flatten() for row in members])
        for group, operation in layout.summands:
            flat = all_reduce(flat, "sum", group)
            flat = flat / group.size() if operation == "avg" else flat
        pieces = flat.split([locals[row].numel() for row in members])
        for row, piece in zip(members, pieces, strict=True):
            found[row] = piece
    return found


def reduce_norms(
    norms: Sequence[Tensor],
    groups: Sequence[Groups],
    p: float,
    scaled: bool,
    error: str | None = None,
) -> list[Tensor]:
    """The p-norm, element by element, of what all ranks of some groups hold.

    Args:
        norms: this rank's, float64; a tensor for each entry of `groups`.
        groups: over which each is reduced; none leaves it as it is.
        p: not 0 and not NaN.
        scaled: take powers of norms divided by the largest (for p < 0 the smallest) on any rank,
            at the cost of one more all_reduce: for float64's range, and high orders.
        error: what went wrong on this rank, which must not keep the others waiting.

    Returns:
        The norms, of equal bits on all ranks of a group.

    Raises:
        ValueError: `error`, after all that the other ranks wait for.
        RuntimeError: on the CPU, something went wrong on another rank. A GPU is not waited for:
            there the norm is NaN, if that rank's own `norms` are.
    """
    reduction = _Reduction(error)
    found = list(norms)
    if any(groups):
        found = _reduced(reduction, norms, groups, p, scaled or abs(p) > LARGEST_UNSCALED_ORDER)
    reduction.finish()
    return found


def _reduced(
    reduction: _Reduction,
    norms: Sequence[Tensor],
    groups: Sequence[Groups],
    p: float,
    scaled: bool,
) -> list[Tensor]:
    if math.isinf(p):
        return _extremes(reduction, norms, groups, math.copysign(1.0, p))
    scales: list[Tensor | float] = [1.0] * len(norms)
    if scaled:
        extremes = _extremes(reduction, norms, groups, math.copysign(1.0, p))
        scales = [torch.where(s.isfinite() & (s > 0), s, 1.0) for s in extremes]
    powers = [(norm / scale) ** p for norm, scale in zip(norms, scales, strict=True)]
    sums = reduction.all_reduce(powers, groups, "sum")
    # A norm that no other rank shares is not taken to a power and back.
    return [
        total ** (1 / p) * scale if of else norm
        for norm, total, scale, of in zip(norms, sums, scales, groups, strict=True)
    ]


def _extremes(
    reduction: _Reduction, norms: Sequence[Tensor], groups: Sequence[Groups], sign: float
) -> list[Tensor]:
    """The largest (sign 1) or the smallest (-1); NaN where any is. MAX alone may lose a NaN."""
    sent = [
        torch.stack([(sign * n).where(~n.isnan(), -math.inf), n.isnan().double()]) for n in norms
    ]
    found = reduction.all_reduce(sent, groups, "max")
    return [torch.where(is_nan > 0, math.nan, sign * largest) for largest, is_nan in found]


class _Reduction:
    """All reductions of one call, with a number that tells ranks of each other's errors."""

    def __init__(self, error: str | None) -> None:
        self._error = error
        self._flags: dict[torch.device, Tensor] = {}

    def all_reduce(
        self, values: Sequence[Tensor], groups: Sequence[Groups], operation: str
    ) -> list[Tensor]:
        """Sums (or maxima) over each value's groups: one all_reduce for each group and device."""
        found = list(values)
        rows: dict[tuple[str, str, int], list[int]] = {}
        named: dict[str, ProcessGroup] = {}
        for i, of in enumerate(groups):
            for group in of:
                named[group.group_name] = group
                device = values[i].device
                rows.setdefault((group.group_name, device.type, device.index or 0), []).append(i)
        for (name, *_), members in sorted(rows.items()):
            flag = self._flag(values[members[0]])
            flat = torch.cat([*(found[i].flatten() for i in members), flag])
            flat = all_reduce(flat, operation, named[name])
            *pieces, flag = flat.split([*(found[i].numel() for i in members), 1])
            self._flags[flag.device] = flag
            for i, piece in zip(members, pieces, strict=True):
                found[i] = piece.view_as(found[i])
        return found

    def finish(self) -> None:
        """Raises where something went wrong, here or on a rank that this one has heard of."""
        if self._error is not None:
            raise ValueError(self._error)
        for device, flag in self._flags.items():
            if device.type == "cpu" and flag.item() > 0:
                raise RuntimeError(
                    "another rank could not measure its gradients, so this one has stopped too and"
                    " changed none: the other rank's error says why"
                )

    def _flag(self, like: Tensor) -> Tensor:
        if like.device not in self._flags:
            failed = float(self._error is not None)
            self._flags[like.device] = torch.full(
                (1,), failed, dtype=like.dtype, device=like.device
            )
        return self._flags[like.device]
