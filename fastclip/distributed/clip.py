"""Clipping of plain tensors that are parts of a whole: pipeline stages, experts, tensor parallel.

DTensors say themselves how they lie on ranks, and the functions of :mod:`fastclip` see to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastclip.clipping import clip
from fastclip.clipping.names import Tensors, as_tensors
from fastclip.distributed import arguments
from fastclip.ops.grad_norm.backends import collect
from fastclip.ops.grad_norm.dispatch import NONFINITE
from fastclip.ops.grad_norm.reference import norm_of
from fastclip.ops.grad_norm.sharded import plain_norm, reduce_norms

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fastclip.distributed.arguments import Divided, Shared


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    groups: Divided = None,
    mesh: DeviceMesh | None = None,
    shared: Shared = (),
) -> Tensor:
    """Clips gradients to the norm of a whole that is divided over ranks.

    :func:`fastclip.clip_grad_norm_` of all ranks' gradients together: every rank of the groups must
    call it. Two all_reduces for each group (the largest norm, and powers of norms over it, since
    ranks need not agree on dtypes), beyond what DTensors among the parameters need.

    Args:
        parameters: this rank's, plain or DTensors, or ``model.named_parameters()``; those without
            a gradient are skipped.
        max_norm, norm_type, error_if_nonfinite: as in :func:`fastclip.clip_grad_norm_`.
        groups: the process group over whose ranks the parameters are divided, each rank having
            others; or several, or a DeviceMesh for the groups of all its dimensions. Or pairs
            (parameters, groups), where that differs: the same on all ranks, in the same order, with
            an empty list where a rank has none. A parameter in no pair is whole here, and
            counted as it is.
        mesh: the same as ``groups=mesh``.
        shared: pairs (parameters, group): each rank of the group has a copy of these (tied
            embeddings, norms between tensor-parallel layers), with equal gradients, which count
            once: on the group's rank 0. All copies are scaled.

    Returns:
        The norm before clipping, 0-d, the same on all ranks, on the first parameter's device.

    Raises:
        ValueError: `groups` and `mesh` are both given, a pair names a parameter that is not in
            `parameters` or that another names too; a gradient's storage was freed.
        TypeError: `groups` or `shared` is of another form.
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set, on all ranks; on the
            CPU, another rank could not measure its gradients.
    """
    members = as_tensors(parameters)
    limit = clip._number("max_norm", max_norm)
    exact, dtype = _norm(members, norm_type, arguments.one_of(groups, mesh), shared)
    total = exact.to(dtype)
    if error_if_nonfinite and not exact.isfinite():  # not `total`: a rank's dtype is its own
        raise RuntimeError(NONFINITE.format(p=float(norm_type)))
    clip.clip_grads_with_norm_(members, limit, exact)
    return total


def get_total_norm(
    parameters: Tensors,
    norm_type: float = 2.0,
    *,
    groups: Divided = None,
    mesh: DeviceMesh | None = None,
    shared: Shared = (),
) -> Tensor:
    """The norm that :func:`clip_grad_norm_` clips by, of the parameters' gradients."""
    members = as_tensors(parameters)
    exact, dtype = _norm(members, norm_type, arguments.one_of(groups, mesh), shared)
    return exact.to(dtype)


def _norm(
    members: list[Tensor], norm_type: float, over: Any, shared: Shared
) -> tuple[Tensor, torch.dtype]:
    """(the unrounded norm of all, float64, on the first parameter's device; its dtype)."""
    p = clip._number("norm_type", norm_type)
    if p == 0 or p != p:
        raise ValueError(f"norm_type must not be 0 or NaN over groups of ranks, got {norm_type!r}")
    sets = arguments.sets(members, over)
    silent = arguments.copies(members, shared)
    device = members[0].device if members else torch.device("cpu")
    failure: Exception | None = None
    norms = []
    for mine, _ in sets:
        counted = [q for q in mine if id(q) not in silent]
        try:
            norms.append(_local(counted, p).to(device))
        except (ValueError, RuntimeError) as error:  # the other ranks wait for a number
            failure = failure or error
            norms.append(torch.full((), float("nan"), dtype=torch.float64, device=device))
    told = None if failure is None else str(failure)
    try:
        found = reduce_norms(norms, [group for _, group in sets], p, scaled=True, error=told)
    except (ValueError, RuntimeError) as error:
        raise failure or error from None
    dtypes = {q.grad.dtype for q in members if q.grad is not None} or {torch.float32}
    dtype = dtypes.pop()
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return norm_of(torch.stack(found), p), dtype


def _local(parameters: list[Tensor], p: float) -> Tensor:
    """The norm of what lies on this rank (of DTensors, on their meshes): 0-d, float64."""
    grads = collect(parameters, take_grads=True)
    if grads and grads.has_norm(p):
        return grads.exact_norm(p)
    having = [q.grad for q in parameters if q.grad is not None]
    if not having:
        return torch.full((), 0.0 if p > 0 else float("inf"), dtype=torch.float64)
    total = clip.get_total_norm(having, p)
    plain = plain_norm(total)
    return (total if plain is None else plain).detach().double()
