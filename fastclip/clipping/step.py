"""Clipping that shares a pass over memory: with the optimizer's step, or with unscaling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastclip.clipping import clip
from fastclip.clipping.factor import Rule, StepInputs, measurable, step_inputs
from fastclip.clipping.hooks import Attributes, StepHooks
from fastclip.clipping.names import raise_nonfinite
from fastclip.clipping.unscale import unscale_and_clip_
from fastclip.optimizers import OptimizerWrapper, step_of, unwrap


def clip_grads_in_step_(
    optimizer: torch.optim.Optimizer | OptimizerWrapper,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    skip_above: float | Tensor = math.inf,
) -> Tensor:
    """Clips by the total gradient norm and steps a fused optimizer, without a scaling pass.

    The norm is one read of the gradients; its factor goes into the optimizer's own kernel, through
    the ``grad_scale`` and ``found_inf`` that torch's fused optimizers take from GradScaler. Equal
    to ``clip_grad_norm_(parameters, max_norm); optimizer.step()``, but that a step whose norm (as
    returned) is not finite is skipped, on the device: it changes no parameter and no state, the
    first one's included. A ``grad_scale`` that the optimizer has already, set by GradScaler or the
    user, is divided out of the norm and multiplied into the factor. The factor is float32: float64
    gradients, and those whose ratio of norm to limit leaves its range, are clipped first. So are
    all on a GPU without a ``grad_scale``, by a launch that reads none where the factor is 1: given
    a factor, a fused step writes the gradients whatever it is.

    Args:
        optimizer: AdamW, Adam or SGD with ``fused=True``, and Adagrad (not torch 2.11's); or a
            trainer's wrapper of one (Accelerate's, Lightning's), whose own ``step()`` is called. A
            wrapper that only accumulates at this call steps nothing, and the norm is returned.
        max_norm, norm_type, error_if_nonfinite: as in :func:`fastclip.clip_grad_norm_`.
        skip_above: a norm above which the step is skipped, as one that is not finite is: a number,
            or a 0-d tensor, which may lie on the optimizer's device (nothing waits for it). Hooks
            of the step see ``optimizer.found_inf`` of 1, which NormMonitor counts.

    Returns:
        The norm before clipping, of the unscaled gradients, 0-d.

    Raises:
        ValueError: the optimizer cannot take the factor; `skip_above` is negative or NaN.
        TypeError: there is no torch.optim.Optimizer in `optimizer`.
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set; nothing was changed.
            It names the parameters, where the optimizer was built of named ones.
    """
    inner = unwrap(optimizer)
    if not getattr(inner, "_step_supports_amp_scaling", False):
        raise ValueError(
            f"{type(inner).__name__} takes no gradient factor in its step: build it with "
            "fused=True (AdamW, Adam, SGD, and Adagrad after torch 2.11), or call "
            "fastclip.clip_grad_norm_ before step()"
        )
    limit, p = clip._number("max_norm", max_norm), clip._number("norm_type", norm_type)
    rule = Rule(limit, p, error_if_nonfinite, _skip_above(skip_above))
    seen: list[StepInputs] = []

    def attributes(stepping: torch.optim.Optimizer) -> Attributes:
        scale, found = (getattr(stepping, name, None) for name in ("grad_scale", "found_inf"))
        seen.append(step_inputs(stepping.param_groups, rule, scale, found))
        found_here = {"grad_scale": seen[-1].grad_scale, "found_inf": seen[-1].found_inf}
        return {name: value for name, value in found_here.items() if value is not None}

    hooks = StepHooks(inner, attributes)
    try:
        step_of(optimizer)()
    finally:
        hooks.remove()
    return seen[-1].total if seen else _norm_alone(inner, rule)


def unscale_and_clip_grad_norm_(
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer | OptimizerWrapper,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    skip_above: float | Tensor = math.inf,
) -> Tensor:
    """``scaler.unscale_(optimizer)`` and ``clip_grad_norm_`` in one read and at most one write.

    Call it between ``scaler.scale(loss).backward()`` and ``scaler.step(optimizer)``, which then
    neither unscales again nor steps on a norm (as returned) that is not finite; a skipped first
    step leaves no trace in a fused optimizer's state.

    Args:
        scaler: a GradScaler; where it is disabled this is plain clipping.
        optimizer: whose gradients are unscaled and clipped; a trainer's wrapper is looked through,
            and either of the two may be given to ``scaler.step``.
        max_norm, norm_type: as in :func:`fastclip.clip_grad_norm_`; of the unscaled gradients.
        error_if_nonfinite: raise where the norm is not finite, which to a GradScaler is a normal
            event: it skips the step and lowers its scale.
        skip_above: a norm (of the unscaled gradients) above which the next step is skipped, as in
            :func:`clip_grads_in_step_`; any optimizer's. GradScaler's scale does not fall for it.

    Returns:
        The norm of the unscaled gradients before clipping, 0-d.

    Raises:
        RuntimeError: the gradients were unscaled or stepped on since the last ``update()``; the
            norm is not finite and `error_if_nonfinite` is set.
        ValueError: a float16 gradient; master gradients are float32, as GradScaler wants them.
        TypeError: there is no torch.optim.Optimizer in `optimizer`.
    """
    limit, p = clip._number("max_norm", max_norm), clip._number("norm_type", norm_type)
    rule = Rule(limit, p, error_if_nonfinite, _skip_above(skip_above))
    return unscale_and_clip_(scaler, optimizer, rule)


def _skip_above(value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            shape = tuple(value.shape)
            raise ValueError(f"skip_above must be one real number, got {value.dtype} of {shape}")
        return value.detach().reshape(())
    number = clip._number("skip_above", value)
    if not number >= 0:
        raise ValueError(f"skip_above must be at least 0, got {value!r}")
    return number


def _norm_alone(optimizer: torch.optim.Optimizer, rule: Rule) -> Tensor:
    """The norm, where a wrapper that accumulates gradients has not stepped."""
    parameters = [q for group in optimizer.param_groups for q in group["params"]]
    grads = measurable(parameters, rule.p)
    total = (
        clip.get_total_norm([q.grad for q in parameters if q.grad is not None], rule.p)
        if grads is None
        else grads.total_norm(rule.p)
    )
    if rule.error_if_nonfinite and not total.isfinite():
        raise_nonfinite(rule.p, None, optimizer.param_groups)
    return total
