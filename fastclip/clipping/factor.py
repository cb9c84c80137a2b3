"""What a fused optimizer's step takes from a clip: its gradient factor, and whether to skip."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fastclip.clipping import clip
from fastclip.clipping.names import raise_nonfinite
from fastclip.ops.grad_norm.backends import Grads, collect
from fastclip.ops.grad_norm.gpu.backend import GpuGrads
from fastclip.ops.grad_norm.parts import GradParts
from fastclip.ops.grad_norm.reference import EPS, moved
from fastclip.ops.grad_norm.sharded import plain_norm

_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass
class Rule:
    """How to clip, and when not to step at all."""

    max_norm: float
    p: float
    error_if_nonfinite: bool = False
    skip_above: float | Tensor = math.inf

    def skips(self, total: Tensor) -> Tensor:
        """Whether a norm, 0-d, skips the step: one that is not finite, or over `skip_above`."""
        if total.device.type == "cpu":
            return torch.tensor(self.skips_number(float(total)), device="cpu")
        total = total.float() if total.dtype.itemsize < 4 else total  # thresholds are wider
        skip = ~total.isfinite()
        if isinstance(self.skip_above, Tensor):
            return skip | (total > moved(self.skip_above, total.device))
        return skip if self.skip_above == math.inf else skip | (total > self.skip_above)

    def skips_number(self, total: float) -> bool:
        """The same of a norm on the host, at a tenth of the cost."""
        return not math.isfinite(total) or total > float(self.skip_above)


@dataclass
class StepInputs:
    """A norm, and the attributes that a fused optimizer reads in its step; None: not to be set."""

    total: Tensor
    grad_scale: Tensor | None  # what gradients are divided by
    found_inf: Tensor | None  # 1 where the step is to be skipped


def step_inputs(
    groups: list[dict[str, Any]], rule: Rule, scale: Tensor | None, found: Tensor | None
) -> StepInputs:
    """Measures the gradients of an optimizer whose step is about to begin.

    Gradients are written here only where the factor is none for the step: its ``grad_scale`` is
    float32, so gradients of float64 are clipped first, and those whose ratio leaves its range.

    Args:
        groups: the optimizer's.
        rule: how to clip.
        scale, found: ``grad_scale`` and ``found_inf`` that the optimizer has already.

    Raises:
        RuntimeError: the norm is not finite and that is an error; no gradient was changed.
    """
    parameters = [q for group in groups for q in group["params"]]
    grads = measurable(parameters, rule.p)
    wide = _has_float64(grads, parameters)
    if scale is None and _is_on_gpu(grads):
        # A fused step that is given a factor writes the gradients too, whatever it is: 9 passes of
        # memory. Our own launch that scales writes none at a factor of 1: 8, and 10 at others.
        total, factor = grads.norm_and_factor(rule.max_norm, rule.p)
        skip = _skip(rule, total, grads, groups)
        grads.scale_(torch.where(skip.to(factor.device), 1.0, factor))
        return StepInputs(total, None, _flag(skip, found))
    total, exact = _norms(grads, parameters, rule.p, scale)
    skip = _skip(rule, total, grads, groups)
    clip_first = functools.partial(_clip_first, grads, parameters, rule.max_norm)
    if exact.device.type != "cpu":
        on_device = _inverse_on_device(rule, exact, scale, skip, wide, clip_first)
        return StepInputs(total, on_device, _flag(skip, found))
    is_skipped = bool(skip) or (found is not None and float(found) > 0)
    inverse = _inverse_on_host(rule, exact, scale, is_skipped, wide, clip_first)
    if found is None and not is_skipped and inverse == 1:  # the step writes what it scales
        return StepInputs(total, None, None)
    return StepInputs(total, _float32(inverse), _float32(float(is_skipped)))


def measurable(parameters: list[Tensor], p: float) -> Grads | None:
    """The gradients, where there are some and kernels have a share in measuring them."""
    grads = collect(parameters, take_grads=True)
    return grads if grads and grads.has_norm(p) else None


def _is_on_gpu(grads: Grads | None) -> TypeGuard[GpuGrads | GradParts]:
    """Whether kernels have a share in gradients, of which the first is on a GPU."""
    on_device = isinstance(grads, GradParts) and grads.device.type != "cpu"
    return on_device or isinstance(grads, GpuGrads)


def _has_float64(grads: Grads | None, parameters: list[Tensor]) -> bool:
    if grads is not None:
        return grads.dtype == torch.float64
    return any(q.grad is not None and q.grad.dtype == torch.float64 for q in parameters)


def _norms(
    grads: Grads | None, parameters: list[Tensor], p: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(the norm of the unscaled gradients in their dtype, the same unrounded where it is known)."""
    if grads is None:
        found = [q.grad for q in parameters if q.grad is not None]
        total = clip.get_total_norm(found, p)
        total = total if scale is None else total / scale.detach().to(total.device)
        return total, _plain(total).detach()
    if scale is None:
        return grads.total_norm(p), grads.exact_norm(p)
    exact = grads.exact_norm(p)
    exact = exact / scale.detach().to(exact.device)
    return exact.to(grads.dtype), exact


def _skip(rule: Rule, total: Tensor, grads: Grads | None, groups: list[dict[str, Any]]) -> Tensor:
    total = _plain(total)
    if rule.error_if_nonfinite and not math.isfinite(float(total)):
        raise_nonfinite(rule.p, grads, groups)
    return rule.skips(total)


def _inverse_on_host(
    rule: Rule,
    norm: Tensor,
    scale: Tensor | None,
    skip: bool,
    wide: bool,
    clip_first: Callable[[Tensor], None],
) -> float:
    """scale / factor, for float32 to hold; a skipped step scales nothing."""
    factor = 1.0 if skip else min(rule.max_norm / (float(norm) + EPS), 1.0)
    number = 1.0 if scale is None else float(scale)
    inverse = number / factor if factor else math.inf
    if factor not in (0.0, 1.0) and (wide or abs(inverse) > _FLOAT32_MAX):
        clip_first(norm)
        inverse = number
    return inverse


def _inverse_on_device(
    rule: Rule,
    norm: Tensor,
    scale: Tensor | None,
    skip: Tensor,
    wide: bool,
    clip_first: Callable[[Tensor], None],
) -> Tensor:
    """The same, without waiting for the device."""
    factor = (rule.max_norm / (norm + EPS)).clamp(max=1.0)
    number = torch.ones_like(norm) if scale is None else scale.detach().to(norm)
    inverse = number / factor
    first = ~skip & (factor != 0) & (factor < 1)
    first = first if wide else first & (inverse.abs() > _FLOAT32_MAX)
    if rule.max_norm != 0 and math.isfinite(rule.max_norm):  # else the factor is 0 or 1
        # Of half the limit it is 1, and a kernel that reads that on the device writes nothing.
        clip_first(torch.where(first, norm, 0.5 * rule.max_norm - EPS))
    return torch.where(first, number, inverse).float()


def _clip_first(
    grads: Grads | None, parameters: list[Tensor], max_norm: float, norm: Tensor
) -> None:
    if grads is None:
        clip.clip_grads_with_norm_(parameters, max_norm, norm)
    else:
        grads.clip_by_(max_norm, norm)


def _float32(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float32, device="cpu")


def _flag(skip: Tensor, found: Tensor | None) -> Tensor:
    flag = skip.float()
    return flag if found is None else torch.maximum(flag, found.detach().to(flag))


def _plain(total: Tensor) -> Tensor:
    plain = plain_norm(total)
    return total if plain is None else plain
