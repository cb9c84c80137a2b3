"""Clipping that shares a pass over memory: with the optimizer's step, or with unscaling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from fastclip.clipping import clip
from fastclip.ops.grad_norm.backends import collect
from fastclip.ops.grad_norm.dispatch import NONFINITE
from fastclip.ops.grad_norm.reference import EPS


def clip_grads_in_step_(
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Clips by the total gradient norm and steps a fused optimizer, without a scaling pass.

    The norm is one read of the gradients; its factor goes into the optimizer's own kernel, through
    the ``grad_scale`` and ``found_inf`` that torch's fused optimizers take from GradScaler. Equal
    to ``clip_grad_norm_(parameters, max_norm); optimizer.step()``, but that a step whose norm is
    not finite is skipped, on the device. A ``grad_scale`` that the optimizer has already, set by
    GradScaler or the user, is divided out of the norm and multiplied into the factor.

    Args:
        optimizer: AdamW, Adam or SGD with ``fused=True``, and Adagrad (not torch 2.11's).
        max_norm, norm_type, error_if_nonfinite: as in :func:`fastclip.clip_grad_norm_`.

    Returns:
        The norm before clipping, of the unscaled gradients, 0-d.

    Raises:
        ValueError: the optimizer cannot take the factor.
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set; nothing was changed.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            f"{type(optimizer).__name__} takes no gradient factor in its step: build it with "
            "fused=True (AdamW, Adam, SGD, and Adagrad after torch 2.11), or call "
            "fastclip.clip_grad_norm_ before step()"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit, p = clip._number("max_norm", max_norm), clip._number("norm_type", norm_type)
    scale = getattr(optimizer, "grad_scale", None)
    grads = collect(parameters, take_grads=True)
    if grads is not None and len(grads) and grads.has_norm(p) and scale is None:
        total, inverse, nonfinite = grads.step_factors(limit, p)
    else:
        total = _total_norm(parameters, p)
        total = total if scale is None else total / scale.to(total.device)
        factor = (limit / (total + EPS)).clamp(max=1.0)
        inverse = (1 if scale is None else scale.to(total.device)) / factor.float()
        nonfinite = 1 - total.isfinite().float()
    if error_if_nonfinite and not total.isfinite():
        raise RuntimeError(NONFINITE.format(p=p))
    if (found := getattr(optimizer, "found_inf", None)) is not None:
        nonfinite = torch.maximum(nonfinite, found.to(nonfinite.device))
    elif inverse.device.type == "cpu" and inverse == 1:  # torch's step writes what it scales
        optimizer.step()
        return total
    with _attributes(optimizer, grad_scale=inverse.float(), found_inf=nonfinite):
        optimizer.step()
    return total


def unscale_and_clip_grad_norm_(
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    norm_type: float = 2.0,
) -> Tensor:
    """``scaler.unscale_(optimizer)`` and ``clip_grad_norm_`` in one read and at most one write.

    Call it between ``scaler.scale(loss).backward()`` and ``scaler.step(optimizer)``, which then
    neither unscales again nor steps on a norm that is not finite.

    Args:
        scaler: a GradScaler; where it is disabled this is plain clipping.
        optimizer: whose gradients are unscaled and clipped.
        max_norm, norm_type: as in :func:`fastclip.clip_grad_norm_`; of the unscaled gradients.

    Returns:
        The norm of the unscaled gradients before clipping, 0-d.

    Raises:
        RuntimeError: the gradients were unscaled or stepped on since the last ``update()``.
        ValueError: a float16 gradient; master gradients are float32, as GradScaler wants them.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit, p = clip._number("max_norm", max_norm), clip._number("norm_type", norm_type)
    if not scaler.is_enabled():
        return clip.clip_grad_norm_(parameters, limit, p)
    grads = collect(parameters, take_grads=True)
    half = any(q.grad is not None and q.grad.dtype == torch.float16 for q in parameters)
    state = scaler._per_optimizer_states[id(optimizer)]
    fused = grads is not None and len(grads) > 0 and grads.has_norm(p) and not half
    if not fused or state["stage"] is not OptState.READY or scaler._scale is None:
        scaler.unscale_(optimizer)  # raises what torch raises
        return clip.clip_grad_norm_(parameters, limit, p)
    assert grads is not None
    scaled = grads.exact_norm(p)
    scale = scaler._scale.to(scaled.device)
    total = scaled / scale
    factor = (limit / (total + EPS)).clamp(max=1.0) / scale
    grads.scale_(factor)
    state["found_inf_per_device"] = {scaled.device: 1 - total.isfinite().float()}
    state["stage"] = OptState.UNSCALED
    return total.to(grads.dtype)


def _total_norm(parameters: list[Tensor], p: float) -> Tensor:
    grads = [q.grad for q in parameters if q.grad is not None]
    return clip.get_total_norm(grads, p)


@contextlib.contextmanager
def _attributes(target: object, **values: Tensor) -> Iterator[None]:
    """Sets attributes for the length of a block; what was there before is put back."""
    before = {name: getattr(target, name) for name in values if hasattr(target, name)}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                setattr(target, name, before[name])
            else:
                delattr(target, name)
