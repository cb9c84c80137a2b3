"""What the optimizers hold, against what the model has."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from fastclip.groups.names import Source, read_entries


class Check(tuple[list[str], list[str]]):
    """What `ParamGroups.check` found, as names: a pair (missing, foreign), and `twice`."""

    twice: list[str]

    def __new__(cls, missing: list[str], foreign: list[str], twice: list[str]) -> "Check":
        made = super().__new__(cls, (missing, foreign))
        made.twice = twice
        return made

    @property
    def missing(self) -> list[str]:
        """Parameters that require a gradient but that no group holds."""
        return self[0]

    @property
    def foreign(self) -> list[str]:
        """Parameters in an optimizer that are not of the model."""
        return self[1]

    def __repr__(self) -> str:
        return f"Check(missing={self.missing}, foreign={self.foreign}, twice={self.twice})"


def params_of(group: dict[str, Any]) -> list[Tensor]:
    """The parameters of a group in any form that torch takes; an iterator becomes a list there."""
    params = group["params"]
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, Iterator):
        params = group["params"] = list(params)
    return [p[1] if isinstance(p, tuple) else p for p in params]


def _flat(optimizers: Iterable[Any]) -> Iterator[Any]:
    for item in optimizers:
        if isinstance(item, (list, tuple)):
            yield from item
        else:
            yield item


def check(model: Source, optimizers: Iterable[Any]) -> Check:
    """`ParamGroups.check`."""
    listed = list(_flat(optimizers))
    if not listed:
        raise TypeError("check needs an optimizer")
    for optimizer in listed:
        if not isinstance(getattr(optimizer, "param_groups", None), list):
            raise TypeError(f"optimizer must have param_groups, got {type(optimizer).__name__}")
    entries = read_entries(model)
    known = {id(entry.param): entry.names[0] for entry in entries}
    counts: dict[int, int] = {}
    foreign = []
    for where, group in _groups(listed):
        for j, param in enumerate(params_of(group)):
            counts[id(param)] = counts.get(id(param), 0) + 1
            if id(param) not in known:
                named = "param_names" in group
                foreign.append(group["param_names"][j] if named else f"{where}, params[{j}]")
    missing = [e.names[0] for e in entries if e.param.requires_grad and id(e.param) not in counts]
    twice = [name for key, name in known.items() if counts.get(key, 0) > 1]
    return Check(missing, foreign, twice)


def _groups(optimizers: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for k, optimizer in enumerate(optimizers):
        prefix = f"optimizer {k}, " if len(optimizers) > 1 else ""
        for i, group in enumerate(optimizer.param_groups):
            yield f"{prefix}group {i}", group
