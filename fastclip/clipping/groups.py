"""A limit of its own for each parameter group, or for each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastclip.clipping import clip
from fastclip.clipping.factor import measurable
from fastclip.clipping.names import raise_nonfinite
from fastclip.ops.grad_norm.absent import is_absent, measured
from fastclip.ops.grad_norm.backends import Grads, collect
from fastclip.ops.grad_norm.cpu import CpuGrads
from fastclip.ops.grad_norm.gpu.backend import GpuGrads
from fastclip.ops.grad_norm.parts import GradParts
from fastclip.ops.grad_norm.reference import factor_of, norm_of
from fastclip.ops.grad_norm.sharded import plain_norm
from fastclip.optimizers import OptimizerWrapper, unwrap


class _Unit(NamedTuple):
    """Parameters with one norm and one limit."""

    parameters: list[Tensor]
    max_norm: float


def clip_groups_(
    optimizer_or_groups: torch.optim.Optimizer | OptimizerWrapper | Iterable[Mapping[str, Any]],
    max_norm: float | None = None,
    *,
    norm_type: float = 2.0,
    per_parameter: bool = False,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Clips each parameter group to a limit of its own: ``group["max_norm"]``.

    As :func:`fastclip.clip_grad_norm_` of one group after the other, but that all gradients are
    read in one pass, and those of a norm over its limit are written in at most one. Nothing waits
    for a GPU, where one launch scales all groups.

    Args:
        optimizer_or_groups: an optimizer, a trainer's wrapper of one, or groups as optimizers take
            them: dicts with ``"params"`` (a tensor, a list of them or of (name, tensor) pairs).
        max_norm: the limit of groups that have no ``"max_norm"``; ``math.inf`` leaves one alone.
        norm_type: as in :func:`fastclip.clip_grad_norm_`.
        per_parameter: the limit is of each parameter's own norm.
        error_if_nonfinite: raise, before any gradient changes, where a norm is not finite.

    Returns:
        The norms before clipping, [groups] or with `per_parameter` [parameters] in the groups'
        order, 0 where there is no gradient; float32 (float64 for float64), on the first gradient's
        device.

    Raises:
        ValueError: a group has no limit, a limit is negative or NaN, a parameter is listed twice.
        TypeError: this is no optimizer and no list of groups.
        RuntimeError: a norm is not finite and `error_if_nonfinite` is set; names the parameters.
    """
    groups = list(_groups(optimizer_or_groups))
    limits = [_limit(i, group, max_norm) for i, group in enumerate(groups)]
    parameters = [q for group in groups for q in group["params"]]
    if len({id(q) for q in parameters}) != len(parameters):
        raise ValueError("a parameter is listed twice in the groups, so its limit is not one")
    p = clip._number("norm_type", norm_type)
    units = [_Unit(group["params"], m) for group, m in zip(groups, limits, strict=True)]
    if per_parameter:
        units = [_Unit([q], unit.max_norm) for unit in units for q in unit.parameters]
    grads = measurable(parameters, p)
    norms = _norms_one_by_one(units, p) if grads is None else _norms(units, grads, p)
    dtype = norms.dtype if grads is None else grads.dtype
    result = norms.to(torch.promote_types(torch.float32, dtype))
    if error_if_nonfinite and not result.isfinite().all():
        raise_nonfinite(p, grads, groups)
    if isinstance(grads, (CpuGrads, GpuGrads)):
        grads.scale_each_(_factors(units, norms))
        return result
    for unit, norm in zip(units, norms.unbind(), strict=True):
        _clip_unit(unit, norm, by_torch=grads is None)
    return result


def _groups(given: Any) -> Iterator[dict[str, Any]]:
    """The groups, their parameters as lists; names where they came with the parameters."""
    if hasattr(given, "param_groups"):
        given = unwrap(given).param_groups
    if isinstance(given, (Mapping, Tensor, str)) or not isinstance(given, Iterable):
        raise TypeError(
            f"clip_groups_ takes an optimizer or a list of groups, got a {type(given).__name__}"
        )
    for i, group in enumerate(given):
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(
                f"group {i} must be a dict with 'params', got a {type(group).__name__}; "
                "fastclip.clip_grad_norm_ clips a plain list of parameters"
            )
        members = group["params"]
        members = [members] if isinstance(members, Tensor) else members
        if isinstance(members, (Iterator, set)):
            raise TypeError(
                f"'params' of group {i} is a {type(members).__name__}, which has no order or can "
                "be read only once: give a list"
            )
        members = list(members)
        if members and all(isinstance(m, tuple) and len(m) == 2 for m in members):
            names = [name for name, _ in members]
            members = [q for _, q in members]
            group = {"param_names": names, **group}
        for q in members:
            if not isinstance(q, Tensor):
                raise TypeError(f"'params' of group {i} holds a {type(q).__name__}, not tensors")
        yield {**group, "params": members}


def _limit(index: int, group: Mapping[str, Any], default: float | None) -> float:
    value = group.get("max_norm")
    value = default if value is None else value
    if value is None:
        raise ValueError(
            f"group {index} has no 'max_norm': give it one (math.inf leaves a group alone), or "
            "pass max_norm= for the groups without"
        )
    limit = clip._number(f"max_norm of group {index}", value)
    if not limit >= 0:
        raise ValueError(f"max_norm of group {index} must be at least 0, got {value!r}")
    return limit


def _norms(units: list[_Unit], grads: Grads, p: float) -> Tensor:
    """The norm of each unit, [units], float64, by one read of all."""
    counts = [sum(q.grad is not None for q in unit.parameters) for unit in units]
    if isinstance(grads, GradParts):  # where a rank lacks gradients that others have
        counts = [
            n + sum(map(is_absent, unit.parameters)) for n, unit in zip(counts, units, strict=True)
        ]
        grads = _of_all_ranks([q for unit in units for q in unit.parameters], grads)
    each = grads.norms(p)[0]
    if counts == [1] * len(units):
        return each
    none = each.new_zeros(())
    pieces = each.split(counts)
    return torch.stack(
        [norm_of(piece, p) if n else none for piece, n in zip(pieces, counts, strict=True)]
    )


def _of_all_ranks(parameters: list[Tensor], grads: Grads) -> Grads:
    """The gradients, with zeros for those that only other ranks have."""
    tensors, present = measured(parameters)
    whole = grads if present is None else collect(tensors, take_grads=False)
    return grads if whole is None else whole


def _norms_one_by_one(units: list[_Unit], p: float) -> Tensor:
    """The same where kernels have no share in it."""
    norms = []
    for unit in units:
        total = clip.get_total_norm([q.grad for q in unit.parameters if q.grad is not None], p)
        plain = plain_norm(total)
        norms.append(total if plain is None else plain)
    having = [q.grad for unit in units for q in unit.parameters if q.grad is not None]
    device = having[0].device if having else torch.device("cpu")
    return torch.stack([n.to(device) for n in norms]) if norms else torch.zeros(0)


def _factors(units: list[_Unit], norms: Tensor) -> Tensor:
    """The factor of each gradient, [gradients], float64, where the norms lie.

    The limits of a run of units are one number to a kernel: none is copied to a GPU.
    """
    runs = [(limit, len(list(same))) for limit, same in groupby(unit.max_norm for unit in units)]
    pieces = norms.split([count for _, count in runs])
    of_units = [
        torch.ones_like(piece) if math.isinf(limit) else factor_of(limit, piece)
        for (limit, _), piece in zip(runs, pieces, strict=True)
    ]
    counts = [sum(q.grad is not None for q in unit.parameters) for unit in units]
    factors = torch.cat(of_units)
    if counts == [1] * len(counts):
        return factors
    each = [f.expand(count) for f, count in zip(factors.unbind(), counts, strict=True) if count]
    return torch.cat(each)


def _clip_unit(unit: _Unit, norm: Tensor, by_torch: bool) -> None:
    having = [q for q in unit.parameters if q.grad is not None]
    if not having or math.isinf(unit.max_norm):
        return
    grads = None if by_torch else collect(having, take_grads=True)
    if grads is None:
        clip.clip_grads_with_norm_(having, unit.max_norm, norm)
    else:
        grads.clip_by_(unit.max_norm, norm)
