"""Unscaling of GradScaler's gradients together with their clipping, and its own bookkeeping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from fastclip.clipping import clip
from fastclip.clipping.factor import Rule, measurable
from fastclip.clipping.hooks import Attributes, forget_next_step, hook_next_step
from fastclip.clipping.names import raise_nonfinite
from fastclip.ops import float8
from fastclip.ops.grad_norm.backends import Grads
from fastclip.ops.grad_norm.reference import EPS
from fastclip.ops.grad_norm.sharded import plain_norm
from fastclip.optimizers import layers, unwrap


def unscale_and_clip_(scaler: torch.amp.GradScaler, optimizer: Any, rule: Rule) -> Tensor:
    """As :func:`fastclip.unscale_and_clip_grad_norm_`, with its arguments checked."""
    inner = unwrap(optimizer)
    groups = inner.param_groups
    parameters = [q for group in groups for q in group["params"]]
    if not scaler.is_enabled():
        forget_next_step(inner)
        grads = measurable(parameters, rule.p) if rule.error_if_nonfinite else None
        if grads is not None and not grads.total_norm(rule.p).isfinite():
            raise_nonfinite(rule.p, grads, groups)
        total = clip.clip_grad_norm_(parameters, rule.max_norm, rule.p, rule.error_if_nonfinite)
        _skip_next(inner, rule, total, None, scaler)
        return total
    wrapped = layers(optimizer)
    states = scaler._per_optimizer_states
    for layer in wrapped:
        if states[id(layer)]["stage"] is not OptState.READY:
            scaler.unscale_(layer)  # raises what torch raises
    forget_next_step(inner)
    state = states[id(inner)]
    half = any(q.grad is not None and q.grad.dtype == torch.float16 for q in parameters)
    grads = None if half or scaler._scale is None else measurable(parameters, rule.p)
    if grads is None:
        total = _one_after_the_other(scaler, inner, parameters, rule)
    else:
        total = _at_once(scaler, state, grads, groups, rule)
    for layer in wrapped:  # GradScaler knows optimizers by identity, and may be given any of these
        states[id(layer)] = state
    _skip_next(inner, rule, total, state, scaler)
    return total


def _at_once(
    scaler: torch.amp.GradScaler, state: dict[str, Any], grads: Grads, groups: Any, rule: Rule
) -> Tensor:
    scaled = grads.exact_norm(rule.p)
    assert scaler._scale is not None
    scale = scaler._scale.to(scaled.device)
    exact = scaled / scale
    total = exact.to(grads.dtype)
    finite = total.isfinite()
    if rule.error_if_nonfinite and not finite:
        raise_nonfinite(rule.p, grads, groups)
    grads.scale_((rule.max_norm / (exact + EPS)).clamp(max=1.0) / scale)
    state["found_inf_per_device"] = {scaled.device: 1 - finite.float()}
    state["stage"] = OptState.UNSCALED
    return total


def _one_after_the_other(
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    rule: Rule,
) -> Tensor:
    grads = [q.grad for q in parameters if q.grad is not None]
    float8.refuse(grads)  # unscale_ would have divided others by the time it says so
    scaler.unscale_(optimizer)
    total = clip.get_total_norm(grads, rule.p)
    plain = plain_norm(total)
    flag = 1 - (total if plain is None else plain).isfinite().float()
    if rule.error_if_nonfinite and not total.isfinite():
        raise_nonfinite(rule.p, None, optimizer.param_groups)
    clip.clip_grads_with_norm_(parameters, rule.max_norm, total)
    found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    if flag.device in found:  # elements may all be finite, and their norm not
        found[flag.device] = torch.maximum(found[flag.device], flag)
    return total


def _skip_next(
    optimizer: torch.optim.Optimizer,
    rule: Rule,
    total: Tensor,
    state: dict[str, Any] | None,
    scaler: torch.amp.GradScaler,
) -> None:
    """Has the next step skipped where the rule says so, by the optimizer and not by GradScaler.

    A spike is no overflow: in GradScaler's own records it would lower the scale.
    """
    if (
        state is None
        and not isinstance(rule.skip_above, Tensor)
        and rule.skip_above == float("inf")
    ):
        return
    plain = plain_norm(total)
    plain = total if plain is None else plain
    skip = rule.skips(plain).float()

    def attributes(stepping: torch.optim.Optimizer) -> Attributes:
        if state is not None and scaler._per_optimizer_states.get(id(stepping)) is not state:
            return {}  # update() came first: that was another step's
        found = getattr(stepping, "found_inf", None)
        return {"found_inf": skip if found is None else torch.maximum(skip, found.to(skip.device))}

    hook_next_step(optimizer, attributes)
