"""Gradient and parameter norms as training metrics."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from fastclip import names as model_names
from fastclip.norms.named import HOLDS, Named, named_pairs
from fastclip.norms.orders import has_norm, norms_of, total_of
from fastclip.norms.stats import TensorStats, norms_and_stats_of
from fastclip.ops.grad_norm.absent import is_absent, stand_in


@dataclass(frozen=True)
class NormReport:
    """The p-norm of every tensor of a model, still on its device until a number is asked for."""

    names: tuple[str, ...]
    norms: Tensor  # [tensors], float64
    norm_type: float
    skipped: tuple[str, ...] = ()  # integer, quantised and 8-bit tensors, which have no norm here
    without_grad: tuple[str, ...] = ()  # parameters without a gradient, in a report of gradients
    moments: Tensor | None = None  # [tensors, 4], float64: mean, std, min, max, with stats=True

    @property
    def total(self) -> float:
        """The p-norm of all elements of all tensors."""
        return total_of(self.norms, self.norm_type).item()

    @property
    def per_parameter(self) -> dict[str, float]:
        """The p-norm of each tensor, by name."""
        return dict(zip(self.names, self.norms.tolist(), strict=True))

    @property
    def stats(self) -> dict[str, TensorStats]:
        """Mean, std, min and max of each tensor, by name.

        Raises:
            ValueError: the report was made without ``stats=True``.
        """
        if self.moments is None:
            raise ValueError("the report has no stats: ask for them with stats=True")
        rows = [TensorStats(*row) for row in self.moments.tolist()]
        return dict(zip(self.names, rows, strict=True))

    def per_group(self, groups: Iterable[Mapping[str, object]]) -> list[float]:
        """The p-norm of each optimizer group that names its parameters (``param_names``).

        What wrappers add to names makes no difference. Parameters without a gradient, and those
        that the report skipped, count as nothing.

        Raises:
            ValueError: a group without ``param_names``, or a name that the model does not have.
        """
        index = self._index()
        norms = []
        for number, group in enumerate(groups):
            names = group.get("param_names")
            if not isinstance(names, Sequence) or isinstance(names, str):
                raise ValueError(
                    f"group {number} must hold param_names, as fastclip.param_groups makes them"
                )
            rows = [_row(index, str(name), number) for name in names]
            mine = self.norms[[row for row in rows if row is not None]]
            norms.append(total_of(mine, self.norm_type).item())
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
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        count = f"({len(self.names)} tensors{skipped})"
        return "\n".join([*lines, f"{'total':<{width}}  {self.total:.4g} {count}"])

    def _index(self) -> dict[str, int | None]:
        """The row of each name, None where it has none; also without a wrapper's `module.`."""
        index: dict[str, int | None] = dict.fromkeys((*self.without_grad, *self.skipped))
        index.update((name, row) for row, name in enumerate(self.names))
        bare = {name[len(HOLDS) :]: row for name, row in index.items() if name.startswith(HOLDS)}
        return {**bare, **index}


@overload
def grad_norms(
    model_or_named_parameters: Named, norm_type: float = 2.0, *, stats: bool = False
) -> NormReport: ...


@overload
def grad_norms(
    model_or_named_parameters: Named, norm_type: Sequence[float], *, stats: bool = False
) -> tuple[NormReport, ...]: ...


def grad_norms(
    model_or_named_parameters: Named,
    norm_type: float | Sequence[float] = 2.0,
    *,
    stats: bool = False,
) -> NormReport | tuple[NormReport, ...]:
    """The norm of every gradient; parameters without one are listed in ``without_grad``.

    Names are those of the model inside DDP, torch.compile, FSDP and other wrappers. Gradients that
    are DTensors have the norm of the whole tensor: every rank must make the call.

    Args:
        model_or_named_parameters: a module, or (name, parameter) pairs.
        norm_type: p of the p-norm, or several: one report each, on the CPU from one read of memory.
        stats: also mean, standard deviation, min and max: of plain CPU tensors from the same read;
            elsewhere torch reads each again, as a float64 copy. Not of complex tensors.

    Returns:
        A :class:`NormReport`, or a tuple of them for several norm types.

    Raises:
        TypeError: parameters without names; `stats` of a complex tensor.
        ValueError: FSDP1 has sharded the model, so that a rank sees pieces only.
    """
    pairs = named_pairs(model_or_named_parameters)
    measured, without, absent = [], [], []
    for name, parameter in pairs:
        if (grad := parameter.grad) is None:
            without.append(name)
            if not is_absent(parameter):
                continue
            absent.append(grad := stand_in(parameter))
        measured.append((name, grad))
    return _reports(measured, norm_type, stats, tuple(without), frozenset(map(id, absent)))


@overload
def param_norms(
    model_or_named_parameters: Named, norm_type: float = 2.0, *, stats: bool = False
) -> NormReport: ...


@overload
def param_norms(
    model_or_named_parameters: Named, norm_type: Sequence[float], *, stats: bool = False
) -> tuple[NormReport, ...]: ...


def param_norms(
    model_or_named_parameters: Named,
    norm_type: float | Sequence[float] = 2.0,
    *,
    stats: bool = False,
) -> NormReport | tuple[NormReport, ...]:
    """The norm of every parameter: arguments, result and errors as :func:`grad_norms`.

    Integer, quantised and 8-bit parameters have no norm: the report lists them in ``skipped``.
    """
    named = [(name, p.detach()) for name, p in named_pairs(model_or_named_parameters)]
    return _reports(named, norm_type, stats, ())


def _reports(
    named: list[tuple[str, Tensor]],
    norm_type: float | Sequence[float],
    stats: bool,
    without_grad: tuple[str, ...],
    absent: frozenset[int] = frozenset(),  # ids of tensors measured for other ranks alone
) -> NormReport | tuple[NormReport, ...]:
    several = isinstance(norm_type, Sequence) and not isinstance(norm_type, str)
    orders = [float(p) for p in norm_type] if several else [float(norm_type)]  # type: ignore
    with_norm = [pair for pair in named if has_norm(pair[1])]
    names, tensors = tuple(name for name, _ in with_norm), [tensor for _, tensor in with_norm]
    skipped: tuple[str, ...] = ()
    if len(with_norm) < len(named):
        skipped = tuple(name for name, tensor in named if not has_norm(tensor))
    if stats and (found := [n for n, t in zip(names, tensors, strict=True) if t.is_complex()]):
        raise TypeError(f"stats=True: {found[0]} is complex, and has no largest element")
    if stats:
        rows, moments = norms_and_stats_of(tensors, *orders)
    else:
        rows, moments = norms_of(tensors, *orders), None
    kept = [row for row, tensor in enumerate(tensors) if id(tensor) not in absent]
    if len(kept) < len(tensors):
        names = tuple(names[row] for row in kept)
        rows, moments = rows[:, kept], None if moments is None else moments[kept]
    reports = tuple(
        NormReport(names, row, p, skipped, without_grad, moments)
        for row, p in zip(rows, orders, strict=True)
    )
    return reports if several else reports[0]


def _row(index: Mapping[str, int | None], name: str, group: int) -> int | None:
    """The row of a group's name, without what wrappers add."""
    bare = model_names.strip_wrappers(name)
    for known in (bare, bare.removeprefix(HOLDS)):
        if known in index:
            return index[known]
    near = ", ".join(map(repr, difflib.get_close_matches(bare, index, n=3)))
    raise ValueError(
        f"group {group} names {name!r}, which the report's model does not have"
        + (f"; near it: {near}" if near else "")
    )
