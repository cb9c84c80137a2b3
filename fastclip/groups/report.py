"""The result of `param_groups`: a list of groups that can explain itself."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fastclip.groups import table
from fastclip.groups.arguments import strings
from fastclip.groups.decisions import Decision
from fastclip.groups.names import Entry, Source, shape_of
from fastclip.groups.optimizers import check, resume, thaw
from fastclip.groups.optimizers.check import Check, params_of
from fastclip.groups.patterns import Patterns, Taken

_SHOWN = 3  # names of what a pattern took, under `explain`


class ParamGroups(list[dict[str, Any]]):
    """A list of groups that any `torch.optim` optimizer takes, and the decisions behind it.

    Each group holds `params`, a `name` for learning-rate monitors, `param_names` (torch's own key,
    in the same order; not with `names=False`) and what was decided: `weight_decay`, `lr`, or, for a
    factor without a learning rate, `lr_scale`; and the options that were given.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        decisions: list[Decision],
        model: Source,
        *,
        lr: float | Tensor | None = None,
        scaled: bool = False,
        taken: Iterable[Taken] = (),
    ) -> None:
        super().__init__(groups)
        self.decisions = decisions
        self.model = model
        self.lr = lr
        self.scaled = scaled
        self.taken = list(taken)

    def __repr__(self) -> str:
        return f"ParamGroups, {len(self)} groups:\n{self.summary()}"

    __str__ = __repr__

    def explain(self, pattern: str | Iterable[str] | None = None, *, format: str = "text") -> str:
        """What was decided for each parameter, which rule said so, and what each pattern took.

        Args:
            pattern: only the parameters that it, or one of several, matches.
            format: `"text"`, `"markdown"` or `"json"`.

        Raises:
            ValueError: a pattern that matches nothing; another format.
        """
        if format not in table.FORMATS:
            raise ValueError(f"format must be of {table.FORMATS}, got {format!r}")
        chosen = self._matching(pattern)
        taken = [t for t in self.taken if (t.argument, t.pattern) != ("weight_decay", "*")]
        if format == "json":
            patterns = [t._asdict() for t in taken]
            return table.as_json(
                {"parameters": [self._row(d) for d in chosen], "patterns": patterns}
            )
        head = ("name", "shape", "weight_decay", "rule", "lr factor", "lr", "layer", "frozen")
        render = table.plain if format == "text" else table.markdown
        lines = [render(head, [self._cells(d) for d in chosen])]
        if taken:
            rows = [(t.argument, t.pattern, str(len(t.names)), _first(t.names)) for t in taken]
            lines += ["", render(("argument", "pattern", "takes", "parameters"), rows)]
        return "\n".join(lines)

    def summary(self) -> str:
        """One line a group, and one for what is frozen."""
        lines = []
        for i, group in enumerate(self):
            known = {k: group[k] for k in ("lr", "lr_scale", "weight_decay") if k in group}
            rates = [f"{k} {_number(v)}" for k, v in known.items()]
            lines.append(f"group {i}: {', '.join([*rates, _count(params_of(group))])}")
        frozen = [d.param for d in self.decisions if d.frozen]
        return "\n".join([*lines, f"frozen: {_count(frozen)}"] if frozen else lines)

    def to_dict(self) -> dict[str, Any]:
        """Groups and decisions as plain numbers, strings and lists, for logs."""
        names = {id(d.param): d.name for d in self.decisions}
        return {
            "groups": [_described(group, names) for group in self],
            "parameters": [self._row(d) for d in self.decisions],
        }

    def check(self, *optimizers: Optimizer | Iterable[Optimizer]) -> Check:
        """Compares the model, as it is now, with what the optimizers hold together.

        Args:
            optimizers: one, several, or a list of them.

        Returns:
            `missing`: parameters that require a gradient but that no group holds, as after a head
            was replaced; `foreign`: parameters in an optimizer that are not of the model; and, as
            an attribute, `twice`: parameters that more than one group holds.
        """
        return check.check(self.model, optimizers)

    def split(self) -> tuple["ParamGroups", "ParamGroups"]:
        """The groups for Muon and those for another optimizer, without the key `use_muon`.

        Raises:
            ValueError: made without `split="muon"`.
        """
        if not all("use_muon" in group for group in self):
            raise ValueError('split needs groups made by param_groups(..., split="muon")')
        parts = [[dict(g) for g in self if bool(g["use_muon"]) is muon] for muon in (True, False)]
        for group in (*parts[0], *parts[1]):
            del group["use_muon"]
        kept = {"lr": self.lr, "scaled": self.scaled, "taken": self.taken}
        one, other = (ParamGroups(p, self.decisions, self.model, **kept) for p in parts)  # type: ignore[arg-type]
        return one, other

    def unfreeze(self, optimizer: Optimizer, pattern: str | Iterable[str]) -> list[str]:
        """Lets frozen parameters train: in the optimizer, with the settings that they would have.

        They join the group of the same settings, at its present rate, so that a scheduler goes on;
        where there is none, they get a group of their own. After DDP was made they cannot.

        Args:
            optimizer: one that was made from these groups.
            pattern: which of the frozen parameters.

        Returns:
            The names of those that train now.

        Raises:
            ValueError: a pattern matches no frozen parameter; the model is inside DDP.
        """
        frozen = [d for d in self.decisions if d.frozen]
        return thaw.unfreeze(self, optimizer, self._matching(pattern, frozen))

    def load_state_dict(
        self, optimizer: Optimizer, state: dict[str, Any], strict: bool = True
    ) -> resume.Loaded:
        """Loads an optimizer's saved state by parameter name, whatever the order of its groups.

        Args:
            optimizer: one that was made from these groups.
            state: `optimizer.state_dict()` of groups with `param_names`.
            strict: whether names on one side only, and settings that differ between the saved
                groups of one group's parameters, are an error; else those keep what they have.

        Returns:
            `missing`: names without a saved state; `unexpected`: saved names that nothing holds.
        """
        names = {id(d.param): d.name for d in self.decisions}
        return resume.load(optimizer, state, names, strict)

    def _matching(
        self, pattern: str | Iterable[str] | None, among: list[Decision] | None = None
    ) -> list[Decision]:
        among = self.decisions if among is None else among
        if pattern is None:
            return among
        entries = [Entry(d.param, [d.name, *d.aliases]) for d in among]
        values = dict.fromkeys(strings("pattern", pattern), True)
        patterns = Patterns("pattern", values, entries)
        return [d for d in among if patterns.best([d.name, *d.aliases])]

    def _lr(self, decision: Decision) -> float | None:
        """The learning rate that a parameter gets, where the groups say it."""
        base = decision.options.get("lr", self.lr)
        if base is None or decision.frozen:
            return None
        return float(base) * (1.0 if self.lr is None else decision.lr_factor)

    def _row(self, decision: Decision) -> dict[str, Any]:
        return {
            "name": decision.name,
            "aliases": list(decision.aliases),
            "shape": list(decision.shape),
            "weight_decay": decision.weight_decay,
            "rule": decision.rule,
            "lr_factor": decision.lr_factor,
            "lr": self._lr(decision),
            "layer": decision.layer,
            "frozen": decision.frozen,
        } | ({"options": dict(decision.options)} if decision.options else {})

    def _cells(self, decision: Decision) -> tuple[str, ...]:
        d, lr = decision, self._lr(decision)
        decay = "optimizer's" if d.weight_decay is None else f"{d.weight_decay:g}"
        return (
            " = ".join((d.name, *d.aliases)),
            "x".join(map(str, d.shape)) or "scalar",
            "-" if d.frozen else decay if d.decays else "no",
            d.rule,
            "-" if d.frozen else f"{d.lr_factor:g}",
            "-" if d.frozen else "optimizer's" if lr is None else f"{lr:.4g}",
            "" if d.layer is None else str(d.layer),
            "frozen" if d.frozen else "",
        )


def _described(group: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    params = params_of(group)
    known = {k: group[k] for k in ("lr", "lr_scale", "weight_decay") if k in group}
    given = group.get("param_names") or [names.get(id(p), "") for p in params]
    return {
        **{k: float(v) for k, v in known.items()},
        **({"name": group["name"]} if "name" in group else {}),
        "values": sum(math.prod(shape_of(p)) for p in params),
        "param_names": list(given),
    }


def _number(value: object) -> str:
    return f"{float(value):g}" if isinstance(value, (int, float, Tensor)) else str(value)


def _first(names: list[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def _count(params: list[Tensor]) -> str:
    return f"{len(params)} tensors, {sum(math.prod(shape_of(p)) for p in params):,} values"
