"""Adaptive clipping of DTensors: each unit where it lies, or with its norms summed over ranks.

A rank decides by placements, dimensions and dtypes, which all ranks share, as in
grad_norm/sharded.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops.grad_norm.absent import is_absent, measured
from fastclip.ops.grad_norm.backends import collect_parts
from fastclip.ops.grad_norm.sharded import reduce_norms
from fastclip.ops.grad_norm.sorting import is_dtensor
from fastclip.ops.grad_norm.tensor_list import DTYPES
from fastclip.ops.unit_clip.reference import GRAD_FLOOR, clip_units_ref_, unit_norms


@torch.no_grad()
def clip_units_(parameters: Sequence[Tensor], clipping: float, eps: float) -> list[Tensor]:
    """Clips the gradients of DTensor parameters in place; returns the parameters left to do."""
    here: list[Any] = []
    vectors: list[Any] = []
    divided: list[Any] = []
    rest = []
    for p in parameters:
        grad = p if is_absent(p) else p.grad  # one on another rank lies as the parameter does
        if grad is None:
            continue
        if not (is_dtensor(p) and is_dtensor(grad)) or not _is_alike(p, grad):
            if p.grad is not None:
                rest.append(p)
        elif _has_whole_units(p):
            here.extend([] if p.grad is None else [p])
        else:
            (vectors if p.ndim <= 1 else divided).append(p)
    if vectors:
        _clip_vectors_(vectors, clipping, eps)
    if divided:
        _clip_divided_(divided, clipping, eps)
    if here:  # last, since an error of this rank's must not keep others waiting
        _clip_here_(here, clipping, eps)
    return rest


def _is_alike(weight: Any, grad: Any) -> bool:
    """Whether each rank holds the same elements of both."""
    one, other = weight._spec, grad._spec
    return (
        one.mesh is other.mesh
        and one.placements == other.placements
        and weight.dtype == grad.dtype
        and weight.dtype in DTYPES
        and _is_shards_or_copies(one)
    )


def _is_shards_or_copies(spec: Any) -> bool:
    """Of which this rank has a part."""
    kinds = {type(placement).__name__ for placement in spec.placements}
    return kinds <= {"Shard", "Replicate"} and spec.mesh.get_coordinate() is not None


def _has_whole_units(tensor: Any) -> bool:
    for placement in tensor._spec.placements:
        if placement.is_shard() and (tensor.ndim <= 1 or placement.dim != 0):
            return False
    return True


def _clip_here_(parameters: list[Any], clipping: float, eps: float) -> None:
    weights = [p._local_tensor for p in parameters]
    grads = [p.grad._local_tensor for p in parameters]
    rest: Sequence[Tensor] = weights
    written: list[Tensor] = []
    if native.core is not None:
        written, rest = native.core.clip_units(weights, clipping, eps, grads)
    wholes = {id(grad): p.grad for p, grad in zip(parameters, grads, strict=True)}
    torch.autograd.graph.increment_version([*written, *(wholes[id(grad)] for grad in written)])
    of_weight = {id(weight): p for p, weight in zip(parameters, weights, strict=True)}
    for weight in rest:
        p = of_weight[id(weight)]
        clip_units_ref_(weight, p.grad._local_tensor, clipping, eps)
        torch.autograd.graph.increment_version([p.grad])


def _clip_vectors_(parameters: list[Any], clipping: float, eps: float) -> None:
    """Vectors, a unit each, whose elements are divided: the norms of all are reduced together."""
    weights = collect_parts(parameters, take_grads=False)
    grads = collect_parts(measured(parameters).tensors, take_grads=False)
    if weights is None or grads is None:
        for p in parameters:
            if p.grad is not None:
                clip_units_ref_(p, p.grad, clipping, eps)
        return
    limits = clipping * weights.norms(2.0)[0].clamp(min=eps)
    _scale_(parameters, list(_factors(limits, grads.norms(2.0)[0]).unbind()))


def _clip_divided_(parameters: list[Any], clipping: float, eps: float) -> None:
    """Matrices and filters whose rows are divided."""
    grads = measured(parameters).tensors
    locals = [t._local_tensor for t in (*parameters, *grads)]
    error = _freed(locals)
    if error is not None:  # the others wait for a number of each
        locals = [t.new_full((), math.nan).expand(t.shape) for t in locals]
    norms = [unit_norms(t) for t in locals]
    groups = []
    for p in parameters:
        mesh, placements = p._spec.mesh, p._spec.placements
        dims = [d for d, s in enumerate(placements) if s.is_shard() and s.dim != 0]
        groups.append(tuple(mesh.get_group(d) for d in dims))
    wide = any(p.dtype == torch.float64 for p in parameters)
    found = reduce_norms([n.double() for n in norms], groups * 2, 2.0, wide, error)
    count = len(parameters)
    factors = [
        _factors(clipping * weight.clamp(min=eps), grad)
        for weight, grad in zip(found[:count], found[count:], strict=True)
    ]
    _scale_(parameters, factors)


def _freed(tensors: list[Tensor]) -> str | None:
    """What is wrong with the first tensor whose storage was freed, which torch would read."""
    try:
        if native.core is not None:
            native.core.require_memory(tensors, False)
    except ValueError as error:
        return str(error)
    return None


def _factors(limits: Tensor, norms: Tensor) -> Tensor:
    within = (norms <= limits) & ~norms.isinf()
    return torch.where(within, 1.0, limits / norms.clamp(min=GRAD_FLOOR))


def _scale_(parameters: list[Any], factors: list[Tensor]) -> None:
    """Multiplies gradients by factors that broadcast; on the CPU those of 1 are not written."""
    for p, factor in zip(parameters, factors, strict=True):
        if p.grad is None or (factor.device.type == "cpu" and bool((factor == 1).all())):
            continue
        p.grad._local_tensor.mul_(factor)
        torch.autograd.graph.increment_version([p.grad])
