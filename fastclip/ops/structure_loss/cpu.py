"""`structure_loss` on the CPU: the ops, and the eager path to the total and its gradients.

The eager path makes the weighted total and every gradient in one native call: while an image is in
cache, and with no op of torch's around it. The gradients are those of the total itself; another
upstream gradient than 1 scales them. Float16's wait for it: unscaled they underflow. Traced code,
tensor subclasses and torch.func go through the op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops.structure_loss.shared import (
    Options,
    each_upstream,
    goes_through_op,
    outputs,
    readable,
    real_dtype,
)

_MASKS = frozenset(
    {torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64}
)


def plain(logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None) -> tuple[Any, ...]:
    """The tensors as kernels read them: contiguous, the mask of bytes or floats."""
    mask = readable("mask", mask)
    if mask.dtype not in _MASKS:
        mask = mask.to(real_dtype(logits))
    if valid is not None:
        valid = (readable("valid", valid) != 0).contiguous()
    return [readable("logits", head).contiguous() for head in logits], mask.contiguous(), valid


def _kind(options: Options) -> tuple[bool, Tensor | None]:
    """The core's last arguments."""
    positive = options.pos_weight
    if positive is not None:
        positive = readable("pos_weight", positive).to(torch.float64).contiguous()
    return options.pixel_iou, positive


def forward(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The op `structure_loss`."""
    loss, sums, columns = outputs(logits, mask)
    inputs, kind = plain(logits, mask, valid), _kind(Options(*options))
    native.require().structure_loss_forward(*inputs, *options[:4], loss, sums, *kind)
    return loss, sums, columns


def backward(
    grad_loss: Tensor,
    sums: Tensor,
    columns: Tensor,
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    """The op `structure_loss_backward`."""
    inputs, kind = plain(logits, mask, valid), _kind(Options(*options))
    upstream = readable("grad_loss", grad_loss).contiguous()
    grads = [torch.empty_like(head) for head in inputs[0]]
    run = native.require().structure_loss_backward
    run(upstream, *inputs, sums, *options[:4], grads, *kind)
    return grads


def takes(device: str) -> bool:
    """Whether the core runs here for a device type."""
    return device == "cpu" and native.core is not None


def total(
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    factors: Sequence[float],
    *options: Any,
) -> Tensor:
    """The sum over heads, images and channels of factors[head] * loss: 0-d."""
    early = (
        logits[0].dtype != torch.float16
        and torch.is_grad_enabled()
        and any(head.requires_grad for head in logits)
    )
    given = Options(*options)
    return _Total.apply(
        mask, valid, given.pos_weight, list(factors), given.numbers(), early, *logits
    )


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor,
        valid: Tensor | None,
        pos_weight: Tensor | None,
        factors: list[float],
        numbers: tuple[Any, ...],
        early: bool,
        *logits: Tensor,
    ) -> Tensor:
        heads, m, v = plain(logits, mask, valid)
        sums = None  # only another backward pass asks for them, which finds them again
        if not early:
            sums = torch.empty(len(heads), *mask.shape[:2], 4, dtype=torch.float64, device="cpu")
        wanted = ctx.needs_input_grad[6:] if early else ()
        grads = [torch.empty_like(h) if w else None for h, w in zip(heads, wanted, strict=False)]
        kind = _kind(Options(*numbers)._replace(pos_weight=pos_weight))
        run = native.require().structure_loss_total
        total = run(heads, m, v, *numbers[:4], factors, sums, grads, *kind)
        ctx.grads, ctx.factors, ctx.numbers = grads, factors, numbers
        ctx.save_for_backward(sums, mask, valid, pos_weight, *logits)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        sums, mask, valid, pos_weight, *logits = (
            ctx.saved_tensors
        )  # checks that none was changed meanwhile
        grads, ctx.grads = ctx.grads, []
        options = (*ctx.numbers, pos_weight)
        op_only = goes_through_op(upstream)
        if op_only or not (grads and _scale(grads, upstream.item())):
            if sums is None:
                with torch.no_grad():
                    sums = torch.ops.fastclip.structure_loss(logits, mask, valid, *options)[1]
            each = each_upstream(upstream, ctx.factors, sums)
            run = torch.ops.fastclip.structure_loss_backward if op_only else backward
            grads = run(each, sums, sums.new_empty(0), logits, mask, valid, *options)
        return None, None, None, None, None, None, *grads


def _scale(grads: list[Tensor | None], factor: float) -> bool:
    """Scales gradients in place; not where bfloat16 would be rounded once more."""
    present = [grad for grad in grads if grad is not None]
    if present[0].dtype == torch.bfloat16 and abs(math.frexp(factor)[0]) != 0.5:
        return False
    if factor != 1:
        torch._foreach_mul_(present, factor)
    return True
