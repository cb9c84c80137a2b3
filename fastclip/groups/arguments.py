"""The arguments of `param_groups`, read and checked before anything is changed."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from fastclip.groups.names import Entry, as_list
from fastclip.groups.patterns import Patterns, disagree
from fastclip.groups.rules import RULES, Listed

_OWN_KEYS = {
    "params": "the groups hold the parameters",
    "param_names": "the groups hold the names",
    "weight_decay": "use weight_decay={pattern: value}, which never overrides a no-decay rule",
    "lr_scale": "use lr_scale={pattern: factor}",
}


@dataclass(frozen=True)
class Chosen:
    """The arguments of `param_groups` that speak of single parameters."""

    weight_decay: Patterns[float | None]
    no_decay: Patterns[bool]
    frozen: Patterns[bool]
    lr_scale: Patterns[float]
    options: Patterns[Mapping[str, Any]]
    rules: tuple[str, ...]
    listed: Listed

    def patterns(self) -> list[Patterns[Any]]:
        return [self.frozen, self.no_decay, self.weight_decay, self.lr_scale, self.options]

    def options_of(self, names: list[str]) -> dict[str, Any]:
        """The options of one parameter; for each key the longest pattern wins."""
        if not self.options.values:
            return {}
        found: dict[str, tuple[str, Any]] = {}
        for pattern in self.options.all(names):
            for key, value in self.options.values[pattern].items():
                other, before = found.get(key, ("", None))
                if len(other) == len(pattern) and token(before) != token(value):
                    raise ValueError(disagree("options", names[0], other, pattern))
                found[key] = (pattern, value)
        return {key: value for key, (_, value) in found.items()}


def token(value: Any) -> Any:
    """Something hashable that is equal for equal options; tensors are told apart by identity."""
    if isinstance(value, Tensor):
        return id(value)
    try:
        hash(value)
    except TypeError:
        return type(value).__name__, repr(value)
    return type(value).__name__, value


def strings(argument: str, values: str | Iterable[str]) -> list[str]:
    return [values] if isinstance(values, str) else as_list(argument, values)


def read_rules(rules: str | Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(strings("rules", rules))
    if unknown := [rule for rule in chosen if rule not in RULES]:
        raise ValueError(f"rules must be of {RULES}, got {unknown[0]!r}")
    return chosen


def number(argument: str, value: object) -> float:
    """`value`, which must be a finite number of 0 or more."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    result = float(value)
    if not 0 <= result < math.inf:
        raise ValueError(f"{argument} must be finite and at least 0, got {value!r}")
    return result


def numbers(
    argument: str, values: Mapping[str, float], entries: list[Entry], missing_ok: bool
) -> Patterns[float]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument} must map patterns to numbers, got {values!r}")
    checked = {key: number(f"{argument}[{key!r}]", value) for key, value in values.items()}
    return Patterns(argument, checked, entries, missing_ok)


def read_decay(
    weight_decay: float | Mapping[str, float | None] | None, entries: list[Entry], missing_ok: bool
) -> Patterns[float | None]:
    """Pattern -> decay; None leaves it to the optimizer."""
    if not isinstance(weight_decay, Mapping):
        value = None if weight_decay is None else number("weight_decay", weight_decay)
        return Patterns("weight_decay", {"*": value}, entries)
    checked = {
        key: None if value is None else number(f"weight_decay[{key!r}]", value)
        for key, value in weight_decay.items()
    }
    return Patterns("weight_decay", checked, entries, missing_ok)


def read_options(
    options: Mapping[str, Mapping[str, Any]] | None, entries: list[Entry], missing_ok: bool
) -> Patterns[Mapping[str, Any]]:
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise TypeError(f"options must map patterns to mappings, got {options!r}")
    for pattern, keys in options.items():
        if not isinstance(keys, Mapping) or not all(isinstance(key, str) for key in keys):
            raise TypeError(
                f"options[{pattern!r}] must map keys of a group to values, got {keys!r}"
            )
        for key in keys:
            if key in _OWN_KEYS:
                raise ValueError(f"options[{pattern!r}] must not have {key!r}: {_OWN_KEYS[key]}")
        if "lr" in keys:
            number(f"options[{pattern!r}]['lr']", keys["lr"])
    return Patterns("options", options, entries, missing_ok)


def check_rates(
    lr: object,
    layer_decay: object,
    min_scale: object,
    layer_id: Callable[[str], int] | None,
    example_inputs: object,
) -> None:
    if lr is not None:
        number("lr", lr)
    if layer_decay is not None and not 0 < number("layer_decay", layer_decay) <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay!r}")
    if number("min_scale", min_scale) > 1:
        raise ValueError(f"min_scale must be in [0, 1], got {min_scale!r}")
    given = {"layer_id": layer_id, "example_inputs": example_inputs, "min_scale": min_scale or None}
    for argument, value in given.items():
        if value is not None and layer_decay is None:
            raise ValueError(f"{argument} is given but layer_decay is None: nothing would use it")
    if layer_id is not None and not callable(layer_id):
        raise TypeError(f"layer_id must be a function from name to int, got {layer_id!r}")
