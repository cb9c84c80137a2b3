"""Which parameters a monitor watches, and the parts of the model that they are charted under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from fastclip.norms.monitor.measure import Watched
from fastclip.norms.named import Named, named_pairs
from fastclip.norms.orders import has_norm

By: TypeAlias = Literal["depth", "group"] | Callable[[str], str] | None


class Watch:
    """The parameters of an optimizer, by the names of a model, as they are at the moment.

    Args:
        model: a module, or (name, parameter) pairs.
        optimizer: torch's.
        by, depth: as in :class:`fastclip.NormMonitor`.

    Raises:
        ValueError: the optimizer holds none of the parameters; `by` is none of its values.
        TypeError: `model` is neither a module nor pairs.
    """

    def __init__(self, model: Named, optimizer: torch.optim.Optimizer, by: By, depth: int) -> None:
        if not (by is None or by in ("depth", "group") or callable(by)):
            raise ValueError(
                f'by must be "depth", "group", a function of parameter names or None, got {by!r}'
            )
        self._by, self._depth, self._optimizer = by, depth, optimizer
        self._model = model if isinstance(model, nn.Module) else named_pairs(model)
        pairs, held = named_pairs(self._model), self._groups()
        if not any(id(p) in held for _, p in pairs):
            raise ValueError(
                f"model: the {type(optimizer).__name__} optimizer holds none of its {len(pairs)} "
                "parameters: give the model and the optimizer that trains it"
            )

    def now(self) -> list[Watched]:
        """Those that are trained now: a group added or a layer unfrozen since is among them."""
        groups = self._groups()
        return [
            Watched(name, p, self._bucket(name, groups[id(p)]))
            for name, p in named_pairs(self._model)
            if id(p) in groups and p.requires_grad and has_norm(p)
        ]

    def buckets(self) -> list[str]:
        """The parts, in the order of the model."""
        found = dict.fromkeys(watched.bucket for watched in self.now())
        return [bucket for bucket in found if bucket is not None]

    def parameters(self) -> list[Tensor]:
        """All that the optimizer holds."""
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _groups(self) -> dict[int, str]:
        """Of each parameter's id, the name of its group, or else the group's number."""
        return {
            id(p): str(group.get("name", number))
            for number, group in enumerate(self._optimizer.param_groups)
            for p in group["params"]
        }

    def _bucket(self, name: str, group: str) -> str | None:
        if self._by is None:
            return None
        if self._by == "group":
            return group
        if self._by == "depth":
            return ".".join(name.split(".")[:-1][: self._depth]) or name
        return str(self._by(name))
