"""The result of `param_groups`: a list of groups that can explain itself."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from fastclip.groups.names import Source, read_entries


@dataclass(frozen=True)
class Decision:
    """What was decided for one parameter, and which rule said so."""

    param: Tensor
    name: str
    aliases: tuple[str, ...]
    frozen: bool
    weight_decay: float
    rule: str
    lr_factor: float
    layer: int | None


class Check(NamedTuple):
    """What `ParamGroups.check` found, as names."""

    missing: list[str]
    foreign: list[str]


class ParamGroups(list[dict[str, Any]]):
    """A list of groups that any `torch.optim` optimizer takes, and the decisions behind it.

    Each group holds `params`, `param_names` (torch's own key, in the same order), `weight_decay`
    and, where a learning rate was given, `lr`.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], decisions: list[Decision], model: Source
    ) -> None:
        super().__init__(groups)
        self.decisions = decisions
        self.model = model

    def explain(self) -> str:
        """A table with a row a parameter: what was decided and which rule said so."""
        head = ("name", "shape", "weight_decay", "rule", "lr factor", "layer", "frozen")
        rows = [_cells(d) for d in self.decisions]
        try:
            return _rich_table(head, rows)
        except ImportError:
            return _plain_table(head, rows)

    def summary(self) -> str:
        """One line a group, and one for what is frozen."""
        lines = []
        for i, group in enumerate(self):
            rates = [f"{k} {float(group[k]):g}" for k in ("lr", "weight_decay") if k in group]
            lines.append(f"group {i}: {', '.join(rates)}, {_count(group['params'])}")
        frozen = [d.param for d in self.decisions if d.frozen]
        return "\n".join([*lines, f"frozen: {_count(frozen)}"] if frozen else lines)

    def to_dict(self) -> dict[str, Any]:
        """Groups and decisions as plain numbers, strings and lists, for logs."""
        groups = [
            {
                **{k: float(group[k]) for k in ("lr", "weight_decay") if k in group},
                "values": sum(p.numel() for p in group["params"]),
                "param_names": list(group["param_names"]),
            }
            for group in self
        ]
        return {"groups": groups, "parameters": [_row(d) for d in self.decisions]}

    def check(self, optimizer: Optimizer) -> Check:
        """Compares the model, as it is now, with what the optimizer holds.

        Returns:
            `missing`: parameters that require a gradient but that no group holds, as after a head
            was replaced; `foreign`: parameters in the optimizer that are not of the model.
        """
        if not isinstance(getattr(optimizer, "param_groups", None), list):
            raise TypeError(f"optimizer must have param_groups, got {type(optimizer).__name__}")
        entries = read_entries(self.model)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [e.names[0] for e in entries if e.param.requires_grad and id(e.param) not in held]
        known = {id(e.param) for e in entries}
        foreign = [
            group["param_names"][j] if "param_names" in group else f"group {i}, params[{j}]"
            for i, group in enumerate(optimizer.param_groups)
            for j, param in enumerate(group["params"])
            if id(param) not in known
        ]
        return Check(missing, foreign)


def _row(decision: Decision) -> dict[str, Any]:
    """What `explain` and `to_dict` tell about one parameter."""
    return {
        "name": decision.name,
        "aliases": list(decision.aliases),
        "shape": list(decision.param.shape),
        "weight_decay": decision.weight_decay,
        "rule": decision.rule,
        "lr_factor": decision.lr_factor,
        "layer": decision.layer,
        "frozen": decision.frozen,
    }


def _cells(decision: Decision) -> tuple[str, ...]:
    d = decision
    decays = "-" if d.frozen else f"{d.weight_decay:g}" if d.weight_decay else "no"
    return (
        " = ".join((d.name, *d.aliases)),
        "x".join(map(str, d.param.shape)) or "scalar",
        decays,
        d.rule,
        "-" if d.frozen else f"{d.lr_factor:g}",
        "" if d.layer is None else str(d.layer),
        "frozen" if d.frozen else "",
    )


def _count(params: Sequence[Tensor]) -> str:
    return f"{len(params)} tensors, {sum(p.numel() for p in params):,} values"


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _rich_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    width = sum(max(map(len, column)) + 3 for column in zip(head, *rows, strict=True)) + 1
    Console(file=text, width=width, markup=False, emoji=False, highlight=False).print(table)
    return text.getvalue().rstrip()
