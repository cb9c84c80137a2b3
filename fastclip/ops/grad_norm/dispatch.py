"""The op `grad_norm`: norms of many tensors, and their scaling, in one pass over memory each.

backends.py chooses who measures and scales a list; where it is traced or observed the op is one
node (compiled.py). What no kernel takes goes to torch's own functions, which are the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import utils as _torch_clip

from fastclip import native
from fastclip.ops import float8
from fastclip.ops.grad_norm.backends import (
    Grads,
    backend,
    collect_in_op,
    collect_parts,
    require_memory,
)
from fastclip.ops.grad_norm.parts import GradParts
from fastclip.ops.grad_norm.sharded import plain_norm

# Captured at import, so that patching torch.nn.utils never makes the reference call itself.
_total_norm = _torch_clip.get_total_norm
_scale_ = _torch_clip.clip_grads_with_norm_


def total_norm_ref(
    tensors: Sequence[Tensor], p: float, error_if_nonfinite: bool = False, foreach: Any = None
) -> Tensor:
    """torch's get_total_norm; NotImplementedError for float8."""
    float8.refuse(tensors)
    return _total_norm(tensors, p, error_if_nonfinite, foreach)


def scale_ref_(parameters: Any, max_norm: float, total_norm: Tensor, foreach: Any = None) -> None:
    """torch's clip_grads_with_norm_; NotImplementedError for float8, before any is written."""
    float8.refuse(listed(parameters, True))
    _scale_(parameters, max_norm, total_norm, foreach)


def clip_ref_(
    parameters: Sequence[Tensor], max_norm: float, p: float, error_if_nonfinite: bool, foreach: Any
) -> Tensor:
    """torch's clip_grad_norm_, by its two halves: itself it looks for them in torch.nn.utils."""
    grads = [q.grad for q in parameters if q.grad is not None]
    total = total_norm_ref(grads, p, error_if_nonfinite, foreach)
    scale_ref_(parameters, max_norm, total, foreach)
    return total


NONFINITE = (
    "The total norm of order {p} for gradients from `parameters` is non-finite, so it cannot be "
    "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
    "`error_if_nonfinite=False`"
)
_NAMED = 5  # how many offending gradients an error names


def clip_(
    tensors: list[Tensor],
    take_grads: bool,
    max_norm: float,
    p: float,
    error_if_nonfinite: bool,
    foreach: Any,
) -> Tensor:
    """Clips the tensors, with `take_grads` their gradients; returns the norm before."""
    grads = _at_once(tensors, take_grads, p, max_norm, error_if_nonfinite)
    if isinstance(grads, Tensor):
        return grads
    if grads is None or not grads.has_norm(p):
        return clip_by_ref_(tensors, take_grads, max_norm, p, error_if_nonfinite, foreach)
    if not grads:
        return torch.tensor(0.0)
    if error_if_nonfinite:
        require_finite(grads.total_norm(p), grads, p)
    return grads.clip_(max_norm, p)


def total_norm(tensors: list[Tensor], p: float, error_if_nonfinite: bool, foreach: Any) -> Tensor:
    """The norm of all elements, by the tensors' backend."""
    values = _at_once(tensors, False, p, None, error_if_nonfinite)
    if isinstance(values, Tensor):
        return values
    if values is None or not values.has_norm(p):
        return total_norm_ref(tensors, p, error_if_nonfinite, foreach)
    if not values:
        return torch.tensor(0.0)
    total = values.total_norm(p)
    if error_if_nonfinite:
        require_finite(total, values, p)
    return total


def clip_with_norm_(
    parameters: list[Tensor], max_norm: float, total_norm: Tensor, foreach: Any
) -> None:
    """Scales the parameters' gradients to a norm known before, by their backend."""
    require_memory("total_norm", total_norm)
    norm = total_norm if type(total_norm) is Tensor else plain_norm(total_norm)
    grads = None if norm is None else collect_in_op(parameters, take_grads=True)
    if norm is None or grads is None or not grads.takes(norm):
        if native.core is not None:
            native.core.require_memory(parameters, True)  # torch would write what was freed
        scale_ref_(parameters, max_norm, total_norm, foreach)
    elif grads:
        grads.clip_by_(max_norm, norm)


def clip_by_ref_(
    tensors: Sequence[Tensor],
    take_grads: bool,
    max_norm: float,
    p: float,
    error_if_nonfinite: bool,
    foreach: Any,
) -> Tensor:
    """As `clip_`, by torch's own function."""
    parameters = tensors if take_grads else holders(tensors)
    return clip_ref_(parameters, max_norm, p, error_if_nonfinite, foreach)


def listed(tensors: Sequence[Tensor], take_grads: bool) -> list[Tensor]:
    """The tensors, or with `take_grads` their gradients that exist."""
    return [t.grad for t in tensors if t.grad is not None] if take_grads else list(tensors)


def holders(grads: Sequence[Tensor]) -> Any:
    """What torch's functions take for parameters that have these gradients."""
    return [SimpleNamespace(grad=grad) for grad in grads]


def _at_once(
    tensors: list[Tensor], take_grads: bool, p: float, max_norm: float | None, finite: bool
) -> Tensor | Grads | None:
    """The norm, where one native call does all; else as `collect`, and nothing is done yet.

    One call, since Python that ran a training step ago is cold.
    """
    if native.core is None:
        return collect_in_op(tensors, take_grads=take_grads)
    try:
        found = native.core.clip_grads(tensors, take_grads, p, max_norm, finite)
    except NotImplementedError:
        return collect_parts(tensors, take_grads)
    return found if isinstance(found, Tensor) else backend(found)


def require_finite(total: Tensor, grads: Grads, p: float) -> None:
    """Raises torch's error, with the first offenders, where the norm as returned is not finite.

    It may be finite until it is rounded to the gradients' dtype: float16 ends at 65504. All ranks
    raise; each names what it holds itself, for not all may have come this far.
    """
    if total.isfinite():
        return
    norms = grads.local_norms(p) if isinstance(grads, GradParts) else grads.norms(p)
    bad = (~norms[0].isfinite()).nonzero().flatten().tolist()
    named = ", ".join(str(i) for i in bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else "")
    where = f". Non-finite: gradients {named} of {len(grads)}" if bad else ""
    if not bad and (exact := grads.exact_norm(p)).isfinite():
        where = f". It is {exact.item():.6g}, past the range of {grads.dtype}"
    raise RuntimeError(NONFINITE.format(p=p) + where)
