"""Which ranks hold the rest of which parameters: the arguments of clip.py, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Over: TypeAlias = ProcessGroup | DeviceMesh | Sequence[ProcessGroup | DeviceMesh] | None
    Divided: TypeAlias = Over | Sequence[tuple[Iterable[Tensor], Over]]
    Shared: TypeAlias = Sequence[tuple[Iterable[Tensor], ProcessGroup]]


class PartOfAll(NamedTuple):
    """Parameters that are divided over the same groups."""

    parameters: list[Tensor]
    groups: tuple[ProcessGroup, ...]


def sets(members: list[Tensor], over: Any) -> list[PartOfAll]:
    """The parameters by the groups that they are divided over, in the order of the pairs."""
    if not _is_pairs(over):
        return [PartOfAll(members, _groups(over))]
    left = {id(q): q for q in members}
    sets = []
    for i, (parameters, groups) in enumerate(over):
        mine = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        for q in mine:
            if left.pop(id(q), None) is None:
                raise ValueError(
                    f"groups[{i}] names a parameter of shape {tuple(q.shape)} that is not in"
                    " parameters, or that it or another pair has named already"
                )
        sets.append(PartOfAll(mine, _groups(groups)))
    return [*sets, PartOfAll([q for q in members if id(q) in left], ())]


def one_of(groups: Any, mesh: Any) -> Any:
    if groups is not None and mesh is not None:
        raise ValueError("give groups or mesh, not both: a mesh may be one of the groups")
    return groups if mesh is None else mesh


def _is_pairs(over: Any) -> bool:
    return isinstance(over, (list, tuple)) and any(
        isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in over
    )


def _groups(over: Any) -> tuple[ProcessGroup, ...]:
    """The process groups of more than one rank, each once."""
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    if over is None:
        return ()
    entries = over if isinstance(over, (list, tuple)) else [over]
    found: dict[str, ProcessGroup] = {}
    for entry in entries:
        several = entry.get_all_groups() if isinstance(entry, DeviceMesh) else [entry]
        for group in several:
            if not isinstance(group, ProcessGroup):
                raise TypeError(
                    "groups must be a ProcessGroup that this rank is in, a DeviceMesh, several, or"
                    f" (parameters, groups) pairs; got a {type(group).__name__}"
                )
            found[group.group_name] = group
    return tuple(group for group in found.values() if group.size() > 1)


def copies(members: list[Tensor], shared: Any) -> set[int]:
    """The ids of parameters that another rank counts."""
    known, found = {id(q) for q in members}, set()
    for i, pair in enumerate(shared):
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            raise TypeError(f"shared[{i}] must be a (parameters, group) pair, got {pair!r:.80}")
        parameters, group = pair
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        for q in parameters:
            if id(q) not in known:
                raise ValueError(f"shared[{i}] names a parameter that is not in parameters")
        if parameters and any(each.rank() != 0 for each in _groups(group)):
            found |= {id(q) for q in parameters}
    return found
