"""`structure_loss` on the CPU: the ops, and the eager road to the total and its gradients.

The eager road makes the weighted total and every gradient in one native call: while an image is in
cache, and with no op of torch's around it. The gradients are those of the total itself; another
upstream gradient than 1 scales them. Float16's wait for it: unscaled they underflow. Traced code,
tensor subclasses and torch.func go through the op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastclip import native

_PLAIN = {Tensor, nn.Parameter}


def real_dtype(logits: Sequence[Tensor]) -> torch.dtype:
    """The dtype of the loss."""
    return torch.float64 if logits[0].dtype == torch.float64 else torch.float32


def plain(logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None) -> tuple[Any, ...]:
    """The tensors as kernels read them: contiguous, the mask of bytes or floats."""
    if mask.dtype not in (torch.uint8, torch.bool) and not mask.dtype.is_floating_point:
        mask = mask.to(real_dtype(logits))
    if valid is not None:
        valid = (valid != 0).contiguous()
    return [head.contiguous() for head in logits], mask.contiguous(), valid


def outputs(
    logits: Sequence[Tensor], mask: Tensor, columns: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor, Tensor]:
    """What the op `structure_loss` returns, not yet written."""
    shape, real = (len(logits), *mask.shape[:2]), real_dtype(logits)
    return (
        mask.new_empty(shape, dtype=real),
        mask.new_empty((*shape, 4), dtype=torch.float64),
        mask.new_empty(columns, dtype=real),
    )


def forward(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The op `structure_loss`."""
    loss, sums, columns = outputs(logits, mask)
    inputs = plain(logits, mask, valid)
    native.require().structure_loss_forward(*inputs, *options, loss, sums)
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
    inputs = plain(logits, mask, valid)
    grads = [torch.empty_like(head) for head in inputs[0]]
    native.require().structure_loss_backward(grad_loss.contiguous(), *inputs, sums, *options, grads)
    return grads


def takes(logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None) -> bool:
    """Whether `total` is for these tensors, here and now."""
    return native.core is not None and mask.device.type == "cpu" and is_eager(logits, mask, valid)


def is_eager(logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None) -> bool:
    """Whether nothing but autograd watches what is done with these tensors."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and mask.numel() > 0
        and {type(mask), *map(type, logits)} <= _PLAIN
        and (valid is None or type(valid) is Tensor)
    )


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
    return _Total.apply(mask, valid, list(factors), options, early, *logits)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor,
        valid: Tensor | None,
        factors: list[float],
        options: tuple[Any, ...],
        early: bool,
        *logits: Tensor,
    ) -> Tensor:
        heads, m, v = plain(logits, mask, valid)
        sums = None  # only another backward pass asks for them, which finds them again
        if not early:
            sums = torch.empty(len(heads), *mask.shape[:2], 4, dtype=torch.float64, device="cpu")
        wanted = ctx.needs_input_grad[5:] if early else ()
        grads = [torch.empty_like(h) if w else None for h, w in zip(heads, wanted, strict=False)]
        total = native.require().structure_loss_total(heads, m, v, *options, factors, sums, grads)
        ctx.grads, ctx.factors, ctx.options = grads, factors, options
        ctx.save_for_backward(sums, mask, valid, *logits)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        sums, mask, valid, *logits = ctx.saved_tensors  # checks that none was changed meanwhile
        grads, ctx.grads = ctx.grads, []
        op_only = goes_through_op(upstream)
        if op_only or not (grads and _scale(grads, upstream.item())):
            if sums is None:
                with torch.no_grad():
                    sums = torch.ops.fastclip.structure_loss(logits, mask, valid, *ctx.options)[1]
            each = each_upstream(upstream, ctx.factors, sums)
            run = torch.ops.fastclip.structure_loss_backward if op_only else backward
            grads = run(each, sums, sums.new_empty(0), logits, mask, valid, *ctx.options)
        return None, None, None, None, None, *grads


def goes_through_op(upstream: Tensor) -> bool:
    """Whether the gradient of a total is for the op: batched, or recorded, for which it raises."""
    return torch._C._functorch.is_legacy_batchedtensor(upstream) or torch.is_grad_enabled()


def each_upstream(upstream: Tensor, factors: Sequence[float], sums: Tensor) -> Tensor:
    """The upstream gradient of every loss, from that of the total: [heads, B, C]."""
    weights = torch.tensor(factors, dtype=upstream.dtype, device=sums.device)
    return (weights * upstream).view(-1, 1, 1).expand(sums.shape[:3])


def _scale(grads: list[Tensor | None], factor: float) -> bool:
    """Scales gradients in place; not where bfloat16 would be rounded once more."""
    present = [grad for grad in grads if grad is not None]
    if present[0].dtype == torch.bfloat16 and abs(math.frexp(factor)[0]) != 0.5:
        return False
    if factor != 1:
        torch._foreach_mul_(present, factor)
    return True
