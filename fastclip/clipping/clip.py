"""Gradient clipping: torch.nn.utils' four functions, with one pass over memory."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import utils as _torch_clip

from fastclip.clipping.names import named_nonfinite, split_pairs
from fastclip.ops.grad_norm import compiled
from fastclip.ops.grad_norm import dispatch as op
from fastclip.ops.grad_norm.backends import collect
from fastclip.ops.grad_norm.sharded import plain_norm

_Tensors: TypeAlias = Tensor | Iterable[Tensor]
_Named: TypeAlias = _Tensors | Iterable[tuple[str, Tensor]]

_torch_clip_grad_value_ = _torch_clip.clip_grad_value_


def clip_grad_norm_(
    parameters: _Named,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales gradients in place so that their total norm is at most `max_norm`.

    Every gradient is multiplied by ``min(1, max_norm / (total_norm + 1e-6))``, and none is written
    where that is 1. A drop-in for :func:`torch.nn.utils.clip_grad_norm_`.

    Args:
        parameters: a tensor or an iterable of tensors, whose ``.grad`` is clipped; None is skipped.
            Also ``model.named_parameters()``: then `error_if_nonfinite` says the names.
        max_norm: the largest norm left alone.
        norm_type: p of the p-norm over all elements; ``'inf'`` for the largest magnitude.
        error_if_nonfinite: raise, before any gradient changes, where the norm is not finite.
        foreach: passed on to torch where torch does the work; the kernels need no such choice.

    Returns:
        The norm before clipping, 0-d, on the first gradient's device, in the gradients' promoted
        dtype. The coefficient comes from the unrounded norm: short float32 runs, summed in double.
        Where all gradients are DTensors of one mesh it is a DTensor, as in torch: replicated, so
        that its ``item()``, ``to_local()`` and ``full_tensor()`` are the norm on all ranks.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
        TypeError, ValueError: `max_norm` or `norm_type` is not a number.
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    elif not isinstance(parameters, list):
        is_generator = isinstance(parameters, types.GeneratorType)
        parameters = list(parameters)
        if is_generator and not parameters:
            warnings.warn(
                "`parameters` is an empty generator, no gradient clipping will occur.",
                stacklevel=2,
            )
    names, parameters = split_pairs(parameters)
    if names is not None:
        with named_nonfinite(names, parameters, norm_type, take_grads=True):
            return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    limit, p = _number("max_norm", max_norm), _number("norm_type", norm_type)
    if torch.compiler.is_compiling():
        return compiled.clip_(parameters, limit, p, error_if_nonfinite, foreach)
    return op.clip_(parameters, limit, p, error_if_nonfinite, foreach)


def get_total_norm(
    tensors: _Named,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all elements of some tensors, as if they were one vector.

    A drop-in for :func:`torch.nn.utils.get_total_norm`; arguments, result and errors are those of
    :func:`clip_grad_norm_`, but that these are the tensors themselves and not parameters.
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    names, tensors = split_pairs(tensors)
    if names is not None:
        with named_nonfinite(names, tensors, norm_type, take_grads=False):
            return get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)
    p = _number("norm_type", norm_type)
    if torch.compiler.is_compiling():
        return compiled.total_norm(tensors, p, error_if_nonfinite, foreach)
    return op.total_norm(tensors, p, error_if_nonfinite, foreach)


def clip_grads_with_norm_(
    parameters: _Tensors,
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Scales gradients in place by ``min(1, max_norm / (total_norm + 1e-6))``.

    A drop-in for :func:`torch.nn.utils.clip_grads_with_norm_`.

    Args:
        parameters, max_norm, foreach: as in :func:`clip_grad_norm_`.
        total_norm: a norm computed before, 0-d; a DTensor is gathered, on all ranks.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    limit = _number("max_norm", max_norm)
    if torch.compiler.is_compiling():
        return compiled.clip_with_norm_(parameters, limit, total_norm, foreach)
    norm = total_norm if type(total_norm) is Tensor else plain_norm(total_norm)
    grads = None if norm is None else collect(parameters, take_grads=True)
    if norm is None or grads is None or not grads.takes(norm):
        op.scale_ref_(parameters, limit, total_norm, foreach)
    elif len(grads):
        grads.clip_by_(limit, norm)


def clip_grad_value_(parameters: _Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every gradient element to [-clip_value, clip_value]: torch's own function."""
    _torch_clip_grad_value_(parameters, _number("clip_value", clip_value), foreach)


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} ({name} must be a number)") from None
