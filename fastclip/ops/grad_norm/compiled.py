"""The op `grad_norm` where it is traced or observed: one node, whatever the number of tensors.

That is under torch.compile, make_fx, torch.jit.trace, and modes. Eager calls do not come this way.
The limit is a tensor in these schemas: a float that changes from call to call would be compiled
again at each value. It lies where the first gradient lies, so that a graph on a GPU has no tensor
on the CPU, which would keep it from becoming a CUDA graph.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.ops import observed
from fastclip.ops.grad_norm import dispatch as op
from fastclip.ops.grad_norm.backends import collect_in_op
from fastclip.ops.grad_norm.reference import EPS, moved

torch.library.define(
    "fastclip::grad_norm", "(Tensor[] tensors, float p, bool error_if_nonfinite=False) -> Tensor"
)
torch.library.define(
    "fastclip::clip_grads_",
    "(Tensor(a!)[] grads, Tensor max_norm, float p, bool error_if_nonfinite=False) -> Tensor",
)
torch.library.define(
    "fastclip::clip_grads_with_norm_",
    "(Tensor(a!)[] grads, Tensor max_norm, Tensor total_norm) -> ()",
)
_EVERY_DEVICE = "CompositeExplicitAutograd"


def clip_(
    tensors: Sequence[Tensor],
    take_grads: bool,
    max_norm: float,
    p: float,
    error_if_nonfinite: bool,
    foreach: Any,
) -> Tensor:
    """As dispatch.clip_, made of torch's ops."""
    grads = op.listed(tensors, take_grads)
    if not _for_the_op(grads):
        return op.clip_by_ref_(tensors, take_grads, max_norm, p, error_if_nonfinite, foreach)
    with torch.no_grad():
        limit = _limit(max_norm, grads[0])
        return torch.ops.fastclip.clip_grads_(grads, limit, p, error_if_nonfinite)


def total_norm(
    tensors: Sequence[Tensor], p: float, error_if_nonfinite: bool, foreach: Any
) -> Tensor:
    """As dispatch.total_norm, made of torch's ops."""
    if not _for_the_op(tensors):
        return op.total_norm_ref(tensors, p, error_if_nonfinite, foreach)
    with torch.no_grad():
        return torch.ops.fastclip.grad_norm(list(tensors), p, error_if_nonfinite)


def clip_with_norm_(
    parameters: Sequence[Tensor], max_norm: float, norm: Tensor, foreach: Any
) -> None:
    """As dispatch.clip_with_norm_, made of torch's ops."""
    grads = op.listed(parameters, True)
    if not _for_the_op([*grads, norm]) or norm.ndim:
        op.scale_ref_(parameters, max_norm, norm, foreach)
    elif grads:
        with torch.no_grad():
            limit = _limit(max_norm, grads[0])
            torch.ops.fastclip.clip_grads_with_norm_(grads, limit, norm)


def _for_the_op(tensors: Sequence[Tensor]) -> bool:
    """Strided plain tensors; DTensors and other subclasses are traced through torch's functions,
    and so is what torch's dispatcher refuses in a list that is written. torch.jit.trace drops an op
    that writes a list."""
    return (
        len(tensors) > 0
        and not observed.is_traced_by_jit()
        and all(
            type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and not _is_lazy(t)
            for t in tensors
        )
    )


def _is_lazy(tensor: Tensor) -> bool:
    """Whether a conjugation, a negation or zeros are not in memory; torch.compile cannot ask."""
    if torch.compiler.is_compiling():
        return False
    return tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor()


def _limit(max_norm: float, first: Tensor) -> Tensor:
    # Times, since that is what torch.compile keeps dynamic of a float.
    return torch.ones((), dtype=torch.float64, device=first.device) * max_norm


@torch.library.impl("fastclip::grad_norm", _EVERY_DEVICE)
@torch.no_grad()
def _grad_norm(tensors: Sequence[Tensor], p: float, error_if_nonfinite: bool = False) -> Tensor:
    values = collect_in_op(tensors, take_grads=False)
    if values is None or not values.has_norm(p):
        return op.total_norm_ref(tensors, p, error_if_nonfinite)
    total = values.total_norm(p)
    if error_if_nonfinite:
        op.require_finite(total, values, p)
    return total


@torch.library.impl("fastclip::clip_grads_", _EVERY_DEVICE)
@torch.no_grad()
def _clip_grads_(
    grads: Sequence[Tensor], max_norm: Tensor, p: float, error_if_nonfinite: bool = False
) -> Tensor:
    found = collect_in_op(grads, take_grads=False)
    if found is None or not found.has_norm(p):
        total = op.total_norm_ref(grads, p, error_if_nonfinite)
        _clip_by_ref_(grads, max_norm, total)
        return total
    total = found.total_norm(p)
    if error_if_nonfinite:
        op.require_finite(total, found, p)
    if max_norm.device.type == "cpu":
        return found.clip_(float(max_norm), p)
    found.clip_by_(1.0, norm_for_limit_1(found.exact_norm(p), max_norm))
    return total


@torch.library.impl("fastclip::clip_grads_with_norm_", _EVERY_DEVICE)
@torch.no_grad()
def _clip_grads_with_norm_(grads: Sequence[Tensor], max_norm: Tensor, total_norm: Tensor) -> None:
    found = collect_in_op(grads, take_grads=False)
    if found is None or not found.takes(total_norm):
        _clip_by_ref_(grads, max_norm, total_norm)
    elif max_norm.device.type == "cpu":
        found.clip_by_(float(max_norm), total_norm)
    else:
        norm = moved(total_norm.double(), max_norm.device)
        found.clip_by_(1.0, norm_for_limit_1(norm, max_norm))


def norm_for_limit_1(norm: Tensor, max_norm: Tensor) -> Tensor:
    """The norm x of which 1 / (x + 1e-6) = max_norm / (norm + 1e-6), so that no one waits for it.

    Kernels read the norm on the device, but the limit as they are queued.
    """
    return (norm + EPS) / max_norm - EPS


def _clip_by_ref_(grads: Sequence[Tensor], max_norm: Tensor, total_norm: Tensor) -> None:
    parameters = op.holders(grads)
    if max_norm.device.type == "cpu":
        op.scale_ref_(parameters, float(max_norm), total_norm)
    else:
        op.scale_ref_(parameters, 1.0, norm_for_limit_1(total_norm, max_norm))


@torch.library.register_fake("fastclip::grad_norm")
def _fake_grad_norm(
    tensors: Sequence[Tensor], p: float, error_if_nonfinite: bool = False
) -> Tensor:
    dtype = functools.reduce(torch.promote_types, {t.dtype.to_real() for t in tensors})
    return tensors[0].new_empty((), dtype=dtype)


@torch.library.register_fake("fastclip::clip_grads_")
def _fake_clip_grads_(
    grads: Sequence[Tensor], max_norm: Tensor, p: float, error_if_nonfinite: bool = False
) -> Tensor:
    return _fake_grad_norm(grads, p)


@torch.library.register_fake("fastclip::clip_grads_with_norm_")
def _fake_clip_grads_with_norm_(
    grads: Sequence[Tensor], max_norm: Tensor, total_norm: Tensor
) -> None:
    return None
