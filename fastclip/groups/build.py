"""Optimizer parameter groups: which parameter decays, which is frozen, at which learning rate."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from torch import Tensor, nn

from fastclip.groups.layers import layer_ids
from fastclip.groups.names import Entry, Source, as_list, read_entries
from fastclip.groups.report import Decision, ParamGroups
from fastclip.groups.rules import RULES, Patterns, no_decay_names, no_decay_rule

__all__ = ["ParamGroups", "param_groups"]


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
    rules: str | Iterable[str] = RULES,
) -> ParamGroups:
    """The parameters of `model` in few groups, each with its weight decay and learning rate.

    A parameter does not decay when one of `rules` or a `no_decay` pattern says so, under any of
    its names: tied weights are one parameter. Names are those without wrappers (DDP, FSDP,
    `torch.compile`, checkpoint wrappers). A pattern is a substring of the name, a glob on the
    whole name if it has any of `*?[`, or a regular expression after `re:`. Of several patterns of
    one argument the longest wins.

    Args:
        model: a module, a list of modules, or (name, parameter) pairs; pairs know no layer types.
        lr: the learning rate of every group; None leaves it to the optimizer.
        weight_decay: the decay, or pattern -> decay, which must cover every parameter (`'*'`).
        no_decay: patterns of parameters that do not decay, in addition to `rules`.
        frozen: patterns of parameters to freeze: `requires_grad` becomes False, and no group
            holds them. Nothing else freezes or unfreezes a parameter.
        lr_scale: pattern -> factor on `lr`.
        layer_decay: factor on `lr` per layer below the top one, times `lr_scale`.
        layer_id: name -> layer, 0 at the input; by default timm's own numbering, or the elements
            of the outermost stack of layers, with what is registered before it as layer 0.
        rules: of `norm` (normalisation layers by type, look-alikes included), `bias`, `ndim`
            (one dimension or none) and `model` (its and its sub-modules' `no_weight_decay()`);
            `()` leaves `no_decay` alone.

    Returns:
        `ParamGroups`: the groups with factor 1 first, decaying ones first among equals.

    Raises:
        TypeError, ValueError: a bad argument, a pattern that matches nothing, a parameter without
            a shape or flattened by FSDP1, nothing left to train. Nothing has been changed then.

    Source: BERT's optimizer (Devlin et al., 2019) for `no_decay`; BEiT (Bao et al., 2021) and
    timm for `layer_decay`; mmengine's `paramwise_cfg` for the factors by pattern.
    """
    if not isinstance(model, nn.Module):
        model = as_list("model", model)  # type: ignore[assignment]
    entries = read_entries(model)
    if not isinstance(weight_decay, Mapping):
        weight_decay = {"*": _number("weight_decay", weight_decay)}
    chosen = _Chosen(
        weight_decay=_numbers("weight_decay", weight_decay, entries),
        no_decay=Patterns("no_decay", dict.fromkeys(_strings("no_decay", no_decay), True), entries),
        frozen=Patterns("frozen", dict.fromkeys(_strings("frozen", frozen), True), entries),
        lr_scale=_numbers("lr_scale", {} if lr_scale is None else lr_scale, entries),
        rules=_rules(rules),
        listed=no_decay_names(model),
    )
    _check_rates(lr, lr_scale, layer_decay, layer_id)
    decisions = [_decide(entry, chosen) for entry in entries]
    if layer_decay is not None:
        layers = layer_ids(model, entries, layer_id)
        decisions = [
            replace(d, layer=layer, lr_factor=d.lr_factor * layer_decay ** (max(layers) - layer))
            for d, layer in zip(decisions, layers, strict=True)
        ]
    if all(decision.frozen for decision in decisions):
        raise ValueError("nothing is left to train: every parameter is frozen")
    for decision in decisions:
        if decision.frozen:
            decision.param.requires_grad_(False)
    return ParamGroups(_merge(decisions, lr), decisions, model)


@dataclass(frozen=True)
class _Chosen:
    """The arguments of `param_groups` that speak of single parameters, read and checked."""

    weight_decay: Patterns[float]
    no_decay: Patterns[bool]
    frozen: Patterns[bool]
    lr_scale: Patterns[float]
    rules: tuple[str, ...]
    listed: set[str]


def _strings(argument: str, values: str | Iterable[str]) -> list[str]:
    return [values] if isinstance(values, str) else as_list(argument, values)


def _rules(rules: str | Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(_strings("rules", rules))
    if unknown := [rule for rule in chosen if rule not in RULES]:
        raise ValueError(f"rules must be of {RULES}, got {unknown[0]!r}")
    return chosen


def _number(argument: str, value: object) -> float:
    """`value`, which must be a finite number of 0 or more."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{argument} must be finite and at least 0, got {value!r}")
    return number


def _numbers(argument: str, values: Mapping[str, float], entries: list[Entry]) -> Patterns[float]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument} must map patterns to numbers, got {values!r}")
    checked = {key: _number(f"{argument}[{key!r}]", value) for key, value in values.items()}
    return Patterns(argument, checked, entries)


def _check_rates(lr: object, lr_scale: object, layer_decay: object, layer_id: object) -> None:
    if lr is not None:
        _number("lr", lr)
    for argument, value in (("lr_scale", lr_scale), ("layer_decay", layer_decay)):
        if lr is None and value is not None:
            raise ValueError(f"{argument} needs lr: a factor needs a learning rate to scale")
    if layer_decay is not None and not 0 < _number("layer_decay", layer_decay) <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay!r}")
    if layer_id is not None and layer_decay is None:
        raise ValueError("layer_id is given but layer_decay is None: nothing would use it")
    if layer_id is not None and not callable(layer_id):
        raise TypeError(f"layer_id must be a function from name to int, got {layer_id!r}")


def _decide(entry: Entry, chosen: _Chosen) -> Decision:
    """The one pass over the rules: frozen first, then no decay, then how much decay."""
    names, decay, factor = entry.names, 0.0, 1.0
    pattern = chosen.frozen.best(names)
    if frozen := pattern is not None or not entry.param.requires_grad:
        rule = f"frozen {pattern!r}" if pattern else "requires_grad is False"
    elif spared := no_decay_rule(entry, chosen.rules, chosen.listed):
        rule = spared
    elif pattern := chosen.no_decay.best(names):
        rule = f"no_decay {pattern!r}"
    elif pattern := chosen.weight_decay.best(names):
        rule, decay = f"weight_decay {pattern!r}", chosen.weight_decay.values[pattern]
    else:
        raise ValueError(f"weight_decay: no pattern matches {names[0]!r}; add '*' for the rest")
    if pattern := chosen.lr_scale.best(names):
        factor = chosen.lr_scale.values[pattern]
    return Decision(entry.param, names[0], tuple(names[1:]), frozen, decay, rule, factor, None)


def _merge(decisions: list[Decision], lr: float | Tensor | None) -> list[dict[str, Any]]:
    """One group for each learning rate and weight decay: the plain rate first, then decay first.

    Sharded and plain parameters are kept apart: the foreach and fused optimizers raise "got mixed
    torch.Tensor and DTensor" on a group of both.
    """
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for d in decisions:
        if d.frozen:
            continue
        key = (d.lr_factor, d.weight_decay, hasattr(d.param, "device_mesh"))
        if key not in groups:
            rate = {} if lr is None else {"lr": lr * d.lr_factor}
            groups[key] = {"params": [], "param_names": [], **rate, "weight_decay": d.weight_decay}
        groups[key]["params"].append(d.param)
        groups[key]["param_names"].append(d.name)
    return [groups[k] for k in sorted(groups, key=lambda k: (k[0] != 1, -k[0], -k[1], k[2]))]
