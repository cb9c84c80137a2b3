"""The comparison of all ranks' parameters, for debugging."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastclip.ops.grad_norm.sorting import is_dtensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check(
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    *,
    group: ProcessGroup | None = None,
) -> None:
    """Compares the parameters of all ranks, to find out why they hang or differ. Collective, slow.

    Ranks that clip together must have parameters of the same count, order, shapes, dtypes, meshes
    and placements, and gradients of the same ones.

    Args:
        parameters: tensors, or ``model.named_parameters()``, whose names the error then says.
        group: whose ranks are compared; the default is all. With pipeline stages, one stage's.

    Raises:
        ValueError: two ranks differ; it names the first parameter that does, on which ranks, and
            what each has there.
    """
    import torch.distributed as dist

    rows = []
    for i, entry in enumerate(parameters):
        name, q = entry if isinstance(entry, tuple) else (f"parameter {i}", entry)
        rows.append((name, _described(q), q.grad is not None and _described(q.grad)))
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, rows, group=group)
    for rank, theirs in enumerate(every):
        if theirs == every[0]:
            continue
        longest = max(len(theirs), len(every[0]))
        nothing = ("no parameter", "", False)
        pairs = ((_at(every[0], i, nothing), _at(theirs, i, nothing)) for i in range(longest))
        first, other = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"rank {rank} of the group differs from rank 0: {_told(other)} where rank 0 has"
            f" {_told(first)}; of {len(theirs)} and {len(every[0])} parameters"
        )


def _at(rows: list[Any], i: int, nothing: Any) -> Any:
    return rows[i] if i < len(rows) else nothing


def _told(row: tuple[str, str, str | bool]) -> str:
    name, parameter, grad = row
    if not parameter:
        return name
    return f"{name} ({parameter}; {f'gradient: {grad}' if grad else 'no gradient'})"


def _described(tensor: Any) -> str:
    """What ranks must agree on."""
    text = f"{tensor.dtype} {tuple(tensor.shape)}, requires_grad={tensor.requires_grad}"
    if is_dtensor(tensor):
        mesh = tensor.device_mesh
        text += f", {tensor.placements} on a mesh of {tuple(mesh.shape)}"
    return text
