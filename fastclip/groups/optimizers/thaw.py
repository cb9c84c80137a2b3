"""Frozen parameters that train again, in an optimizer that runs already."""

from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from fastclip.groups.decisions import Decision, merge
from fastclip.groups.optimizers.check import params_of
from fastclip.groups.wrapped import check_ddp

if TYPE_CHECKING:
    from fastclip.groups.report import ParamGroups


def unfreeze(groups: "ParamGroups", optimizer: Optimizer, chosen: list[Decision]) -> list[str]:
    """`ParamGroups.unfreeze`: `chosen` are frozen decisions."""
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise TypeError(f"optimizer must have param_groups, got {type(optimizer).__name__}")
    check_ddp(groups.model, [d.param for d in chosen], "unfreeze")
    held = {id(p) for group in optimizer.param_groups for p in params_of(group)}
    if again := [d.name for d in chosen if id(d.param) in held]:
        raise ValueError(f"unfreeze: the optimizer holds {again[0]!r} already")
    named = all("param_names" in group for group in optimizer.param_groups)
    homes = _homes(groups, optimizer)
    thawed = [d.as_trained for d in chosen if d.as_trained is not None]
    alone = []
    for d in thawed:
        d.param.requires_grad_(True)
        if home := homes.get(d.key()):
            home["params"].append(d.param)
            if named:
                home["param_names"].append(d.name)
        else:
            alone.append(d)
    for group in merge(alone, groups.lr, groups.scaled, named):
        optimizer.add_param_group(_named_apart(group, optimizer))
    by_id = {id(d.param): d for d in thawed}
    groups.decisions[:] = [by_id.get(id(d.param), d) for d in groups.decisions]
    return [d.name for d in thawed]


def _homes(groups: "ParamGroups", optimizer: Optimizer) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Key of a decision -> the optimizer's group that holds such parameters."""
    keys = {id(d.param): d.key() for d in groups.decisions if not d.frozen}
    homes: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in optimizer.param_groups:
        found = {keys.get(id(p)) for p in group["params"]}
        if len(found) == 1 and (key := found.pop()) is not None:
            homes.setdefault(key, group)
    return homes


def _named_apart(group: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    taken = {other.get("name") for other in optimizer.param_groups}
    base, count = group["name"], 1
    while group["name"] in taken:
        count += 1
        group["name"] = f"{base}_{count}"
    return group
