"""Optimizer parameter groups: which parameter decays, which is frozen, at which learning rate."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastclip.groups_rules import (
    RULES,
    Entry,
    Patterns,
    Source,
    as_list,
    no_decay_names,
    no_decay_rule,
    read_entries,
)


@dataclass(frozen=True)
class Decision:
    """What was decided for one parameter, and which rule said so."""

    param: Tensor
    name: str
    aliases: tuple[str, ...]
    weight_decay: float
    rule: str
    lr_factor: float
    layer: int | None
    frozen: bool


class Check(NamedTuple):
    """Parameters that train but that no group holds, and parameters that are not the model's."""

    missing: list[str]
    foreign: list[str]


class ParamGroups(list[dict[str, Any]]):
    """A list of groups that any `torch.optim` optimizer takes, and the decisions behind it."""

    def __init__(self, groups: Iterable[dict[str, Any]], decisions: list[Decision]) -> None:
        super().__init__(groups)
        self.decisions = decisions


def param_groups(
    model: Source,
    *,
    lr: float | Tensor | None = None,
    weight_decay: float | Mapping[str, float] = 0.0,
    no_decay: str | Iterable[str] = (),
    frozen: str | Iterable[str] = (),
    lr_scale: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    layer_id: Callable[[str], int] | None = None,
    rules: Iterable[str] = RULES,
) -> ParamGroups:
    """The parameters of `model` in few groups, each with its weight decay and learning rate."""
    if isinstance(model, Iterable) and not isinstance(model, torch.nn.Module):
        model = as_list("model", model)  # type: ignore[assignment]
    entries = read_entries(model)
    decays = weight_decay if isinstance(weight_decay, Mapping) else {"*": weight_decay}
    chosen = _Chosen(
        weight_decay=Patterns("weight_decay", decays, entries),
        no_decay=Patterns("no_decay", _flags("no_decay", no_decay), entries),
        frozen=Patterns("frozen", _flags("frozen", frozen), entries),
        lr_scale=Patterns("lr_scale", lr_scale or {}, entries),
        rules=tuple(rules),
        listed=no_decay_names(model),
    )
    decisions = [_decide(entry, chosen) for entry in entries]
    groups = ParamGroups(_merge(decisions, lr), decisions)
    for decision in decisions:
        if decision.frozen:
            decision.param.requires_grad_(False)
    return groups


@dataclass(frozen=True)
class _Chosen:
    """The arguments of `param_groups`, read and checked."""

    weight_decay: Patterns[float]
    no_decay: Patterns[bool]
    frozen: Patterns[bool]
    lr_scale: Patterns[float]
    rules: tuple[str, ...]
    listed: set[str]


def _flags(argument: str, patterns: str | Iterable[str]) -> dict[str, bool]:
    listed = [patterns] if isinstance(patterns, str) else as_list(argument, patterns)
    return dict.fromkeys(listed, True)


def _decide(entry: Entry, chosen: _Chosen) -> Decision:
    """The one pass over the rules: frozen first, then no decay, then how much decay."""
    names = entry.names
    decay, factor = 0.0, 1.0
    if frozen := chosen.frozen.best(names):
        rule = f"frozen {frozen!r}"
    elif not entry.param.requires_grad:
        rule = "requires_grad is False"
    elif spared := no_decay_rule(entry, chosen.rules, chosen.listed):
        rule = spared
    elif pattern := chosen.no_decay.best(names):
        rule = f"no_decay {pattern!r}"
    elif pattern := chosen.weight_decay.best(names):
        rule, decay = f"weight_decay {pattern!r}", chosen.weight_decay.values[pattern]
    else:
        raise ValueError(f"weight_decay: no pattern matches {names[0]!r}; add '*' for the rest")
    if scaled := chosen.lr_scale.best(names):
        factor = chosen.lr_scale.values[scaled]
    is_frozen = frozen is not None or not entry.param.requires_grad
    return Decision(entry.param, names[0], tuple(names[1:]), decay, rule, factor, None, is_frozen)


def _merge(decisions: list[Decision], lr: float | Tensor | None) -> list[dict[str, Any]]:
    """One group for each (learning rate, weight decay): the plain rate first, decay first."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for d in decisions:
        if d.frozen:
            continue
        rate = {} if lr is None else {"lr": lr * d.lr_factor}
        empty = {"params": [], "param_names": [], **rate, "weight_decay": d.weight_decay}
        group = groups.setdefault((d.lr_factor, d.weight_decay), empty)
        group["params"].append(d.param)
        group["param_names"].append(d.name)
    order = sorted(groups, key=lambda key: (not math.isclose(key[0], 1.0), -key[0], -key[1]))
    return [groups[key] for key in order]
