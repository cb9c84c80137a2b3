"""Gradient and parameter norms as training metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastclip.ops.grad_norm.backends import collect

_Named: TypeAlias = nn.Module | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class NormReport:
    """The p-norm of every tensor of a model, still on its device until a number is asked for."""

    names: tuple[str, ...]
    norms: Tensor  # [tensors], float64
    norm_type: float

    @property
    def total(self) -> float:
        """The p-norm of all elements of all tensors."""
        return _norm_of(self.norms, self.norm_type)

    @property
    def per_parameter(self) -> dict[str, float]:
        """The p-norm of each tensor, by name."""
        return dict(zip(self.names, self.norms.tolist(), strict=True))

    def per_group(self, groups: Iterable[Mapping[str, object]]) -> list[float]:
        """The p-norm of each optimizer group that names its parameters (``param_names``).

        Raises:
            ValueError: a group without ``param_names``.
        """
        index = {name: i for i, name in enumerate(self.names)}
        norms = []
        for group in groups:
            names = group.get("param_names")
            if not isinstance(names, Sequence):
                raise ValueError(
                    "groups must hold param_names, as fastclip.param_groups makes them"
                )
            rows = [index[name] for name in names if name in index]
            norms.append(_norm_of(self.norms[rows], self.norm_type))
        return norms

    def nonfinite(self) -> list[str]:
        """The names of the tensors that hold a NaN or an infinity."""
        return [name for name, norm in self.per_parameter.items() if not math.isfinite(norm)]

    def table(self, top: int = 10) -> str:
        """The tensors of the largest norms, those that are not finite first."""
        rows = sorted(
            self.per_parameter.items(),
            key=lambda row: (math.isfinite(row[1]), -row[1] if math.isfinite(row[1]) else 0),
        )[:top]
        width = max((len(name) for name, _ in rows), default=4)
        lines = [f"{'name':<{width}}  {self.norm_type:g}-norm"]
        lines += [f"{name:<{width}}  {norm:.4g}" for name, norm in rows]
        return "\n".join(
            [*lines, f"{'total':<{width}}  {self.total:.4g} ({len(self.names)} tensors)"]
        )


def grad_norms(
    model_or_named_parameters: _Named, norm_type: float | Sequence[float] = 2.0
) -> NormReport | tuple[NormReport, ...]:
    """The norm of every gradient; parameters without one are left out.

    Args:
        model_or_named_parameters: a module, or (name, parameter) pairs.
        norm_type: p of the p-norm, or several: one report each, on the CPU from one read of memory.

    Returns:
        A :class:`NormReport`, or a tuple of them for several norm types.
    """
    named = [(name, p.grad) for name, p in _pairs(model_or_named_parameters) if p.grad is not None]
    return _reports(named, norm_type)


def param_norms(
    model_or_named_parameters: _Named, norm_type: float | Sequence[float] = 2.0
) -> NormReport | tuple[NormReport, ...]:
    """The norm of every parameter: arguments and result as :func:`grad_norms`."""
    named = [(name, p.detach()) for name, p in _pairs(model_or_named_parameters)]
    return _reports(named, norm_type)


def norms_of(tensors: Sequence[Tensor], *orders: float) -> Tensor:
    """The norm of each tensor for each order: [orders, tensors], float64."""
    if not tensors:
        return torch.zeros(len(orders), 0, dtype=torch.float64)
    values = collect(tensors, take_grads=False)
    if values is not None and all(values.has_norm(p) for p in orders):
        return values.norms(*orders)
    # On several devices they meet on a GPU: a copy to it is queued, one from it would wait.
    home = next((t.device for t in tensors if t.device.type != "cpu"), tensors[0].device)
    rows = [
        [torch.linalg.vector_norm(t, p).to(home, torch.float64, non_blocking=True) for t in tensors]
        for p in orders
    ]
    return torch.stack([torch.stack(row) for row in rows])


def _pairs(source: _Named) -> list[tuple[str, Tensor]]:
    pairs = list(source.named_parameters() if isinstance(source, nn.Module) else source)
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise TypeError(
            "model_or_named_parameters must be a module or (name, parameter) pairs, "
            f"got {type(source).__name__}: pass model.named_parameters(), not model.parameters()"
        )
    return pairs


def _reports(
    named: list[tuple[str, Tensor]], norm_type: float | Sequence[float]
) -> NormReport | tuple[NormReport, ...]:
    several = isinstance(norm_type, Sequence) and not isinstance(norm_type, str)
    orders = [float(p) for p in norm_type] if several else [float(norm_type)]  # type: ignore
    names = tuple(name for name, _ in named)
    rows = norms_of([tensor for _, tensor in named], *orders)
    reports = tuple(NormReport(names, row, p) for row, p in zip(rows, orders, strict=True))
    return reports if several else reports[0]


def _norm_of(norms: Tensor, p: float) -> float:
    if not norms.numel():
        return 0.0
    return norms.sum().item() if p == 0 else torch.linalg.vector_norm(norms, p).item()
