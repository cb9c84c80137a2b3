"""Gradient clipping with one pass over memory: torch.nn.utils' four functions, and of tensors."""

from __future__ import annotations

import types
import warnings

from torch import Tensor

from fastclip.clipping.names import Tensors, as_tensors, named_nonfinite, split_pairs
from fastclip.ops import observed
from fastclip.ops.clip_value.dispatch import clip_values_, clip_values_ref_
from fastclip.ops.grad_norm import compiled
from fastclip.ops.grad_norm import dispatch as op


def clip_grad_norm_(
    parameters: Tensors,
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
        So float16 gradients of a norm past 65504, where this returns inf, are clipped to `max_norm`
        and not, as by torch, to zeros.
        Where all gradients are DTensors of one mesh it is a DTensor, as in torch: replicated, so
        that its ``item()``, ``to_local()`` and ``full_tensor()`` are the norm on all ranks.

    Raises:
        RuntimeError: the norm, as returned, is not finite and `error_if_nonfinite` is set; a
            gradient was made under inference_mode and would be written outside.
        ValueError: a gradient's storage was freed.
        NotImplementedError: a gradient is float8, whose scale lies elsewhere; nothing was changed.
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
    arguments = parameters, True, limit, p, error_if_nonfinite, foreach
    return observed.call("clip_grad_norm_", compiled.clip_, op.clip_, *arguments)


def get_total_norm(
    tensors: Tensors,
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
    arguments = tensors, p, error_if_nonfinite, foreach
    return observed.call("get_total_norm", compiled.total_norm, op.total_norm, *arguments)


def clip_grads_with_norm_(
    parameters: Tensors,
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
    parameters = as_tensors(parameters)
    limit = _number("max_norm", max_norm)
    arguments = parameters, limit, total_norm, foreach
    observed.call("clip_grads_with_norm_", compiled.clip_with_norm_, op.clip_with_norm_, *arguments)


def clip_tensors_(
    tensors: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales tensors in place so that their total norm is at most `max_norm`.

    :func:`clip_grad_norm_` of the tensors themselves: of gradients from ``torch.autograd.grad``,
    of updates, of parameters. Nothing is recorded for autograd.

    Args:
        tensors: a tensor or an iterable of tensors, of any shape and real or complex dtype.
        max_norm, norm_type, error_if_nonfinite, foreach: as in :func:`clip_grad_norm_`.

    Returns:
        The norm before clipping, as :func:`clip_grad_norm_` returns it.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set; nothing was changed.
        NotImplementedError: a tensor is float8, as in :func:`clip_grad_norm_`.
        TypeError: something in `tensors` is not a tensor.
    """
    tensors = as_tensors(tensors)
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors must hold tensors, got a {type(tensor).__name__} at {i}")
    limit, p = _number("max_norm", max_norm), _number("norm_type", norm_type)
    arguments = tensors, False, limit, p, error_if_nonfinite, foreach
    return observed.call("clip_tensors_", compiled.clip_, op.clip_, *arguments)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every gradient element to [-clip_value, clip_value], in place.

    A drop-in for :func:`torch.nn.utils.clip_grad_value_`. On the CPU and on GPUs one read, and a
    write only where something is clipped. NaN stays NaN; a negative `clip_value` is given to every
    other element, as by torch.

    Args:
        parameters: a tensor or an iterable of tensors, whose ``.grad`` is clipped; None is skipped.
            Also ``model.named_parameters()``.
        clip_value: the largest magnitude left alone; a NaN makes every element NaN.
        foreach: passed on to torch where torch does the work.

    Raises:
        RuntimeError: `clip_value` is past the range of a gradient's dtype.
        NotImplementedError: a gradient is float8, as in :func:`clip_grad_norm_`.
        TypeError, ValueError: `clip_value` is not a number.
    """
    parameters = as_tensors(parameters)
    arguments = parameters, _number("clip_value", clip_value), foreach
    observed.call("clip_grad_value_", clip_values_ref_, clip_values_, *arguments)


def _number(name: str, value: float) -> float:
    if isinstance(value, Tensor):  # float() warns of one that requires grad
        value = value.detach()
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} ({name} must be a number)") from None
