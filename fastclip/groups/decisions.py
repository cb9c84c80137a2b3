"""What is decided for each parameter, and the groups that follow from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastclip.groups.arguments import Chosen, token
from fastclip.groups.names import Entry, shape_of
from fastclip.groups.rules import no_decay_rule


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for one parameter, and which rule said so.

    `weight_decay` None leaves the decay to the optimizer. `as_trained` is what a frozen parameter
    would have been without `frozen`.
    """

    param: Tensor = field(repr=False)
    name: str
    aliases: tuple[str, ...]
    frozen: bool
    weight_decay: float | None
    rule: str
    lr_factor: float
    layer: int | None
    options: dict[str, Any] = field(default_factory=dict)
    as_trained: "Decision | None" = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole parameter."""
        return shape_of(self.param)

    @property
    def decays(self) -> bool:
        """Whether a decay, or the optimizer's, applies."""
        return not self.frozen and self.weight_decay != 0

    def key(self) -> tuple[Any, ...]:
        """Parameters with equal keys share a group.

        Sharded and plain parameters are kept apart: the foreach and fused optimizers raise "got
        mixed torch.Tensor and DTensor" on a group of both.
        """
        options = tuple(sorted((k, token(v)) for k, v in self.options.items()))
        decay = -1.0 if self.weight_decay is None else self.weight_decay
        return self.lr_factor, decay, hasattr(self.param, "device_mesh"), options


def decide(entry: Entry, chosen: Chosen, layer: int | None = None, scale: float = 1.0) -> Decision:
    """The one pass over the rules: no decay, then how much decay; frozen over both."""
    names, factor = entry.names, scale
    decay: float | None = 0.0
    if spared := no_decay_rule(entry, chosen.rules, chosen.listed):
        rule = spared
    elif pattern := chosen.no_decay.best(names):
        rule = f"no_decay {pattern!r}"
    elif pattern := chosen.weight_decay.best(names):
        rule, decay = f"weight_decay {pattern!r}", chosen.weight_decay.values[pattern]
        rule = "optimizer's weight_decay" if decay is None else rule
    else:
        raise ValueError(f"weight_decay: no pattern matches {names[0]!r}; add '*' for the rest")
    if pattern := chosen.lr_scale.best(names):
        factor = chosen.lr_scale.values[pattern] * scale
    options = chosen.options_of(names)
    made = Decision(
        entry.param, names[0], tuple(names[1:]), False, decay, rule, factor, layer, options
    )
    frozen = chosen.frozen.best(names)
    if frozen is None and entry.param.requires_grad:
        return made
    rule = "requires_grad is False" if frozen is None else f"frozen {frozen!r}"
    return replace(made, frozen=True, weight_decay=0.0, rule=rule, as_trained=made)


def merge(
    decisions: Iterable[Decision], lr: float | Tensor | None, scaled: bool, names: bool
) -> list[dict[str, Any]]:
    """One group for each key: the plain rate first, decaying ones first among equals.

    `scaled`: without `lr`, the factor is written under `lr_scale`, as timm's, BEiT's and MAE's
    schedulers read it.
    """
    members: dict[tuple[Any, ...], list[Decision]] = {}
    for d in decisions:
        if not d.frozen:
            members.setdefault(d.key(), []).append(d)
    order = sorted(members, key=lambda k: (k[0] != 1, -k[0], k[1] == 0, -k[1], k[2], bool(k[3])))
    taken: set[str] = set()
    groups = []
    for key in order:
        group = settings(members[key][0], lr, scaled)
        group["name"] = _name(members[key][0], taken)
        group["params"] = [d.param for d in members[key]]
        if names:
            group["param_names"] = [d.name for d in members[key]]
        groups.append(group)
    return groups


def settings(decision: Decision, lr: float | Tensor | None, scaled: bool) -> dict[str, Any]:
    """A group's settings; what they do not say is left to the optimizer."""
    made: dict[str, Any] = {"params": []}
    base = decision.options.get("lr", lr)
    if base is not None:
        # A tensor is shared where the factor is 1, so that filling it changes the rate.
        made["lr"] = base if decision.lr_factor == 1 or lr is None else base * decision.lr_factor
    if lr is None and scaled:
        made["lr_scale"] = decision.lr_factor
    if decision.weight_decay is not None:
        made["weight_decay"] = decision.weight_decay
    return made | {k: v for k, v in decision.options.items() if k != "lr"}


def _name(decision: Decision, taken: set[str]) -> str:
    """A name for learning-rate monitors, which want them distinct."""
    parts = [decision.options.get("name", "")] if decision.options.get("name") else []
    parts.append("decay" if decision.decays else "no_decay")
    if decision.lr_factor != 1:
        parts.append(f"x{decision.lr_factor:.4g}")
    base = "_".join(map(str, parts))
    if base in taken and hasattr(decision.param, "device_mesh"):
        base = f"{base}_sharded"
    name = base
    count = 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name
