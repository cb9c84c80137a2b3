"""`structure_loss` through Triton: the ops, and the eager path to the total.

The eager path is five launches, forward and backward. Through the op, torch weighs and adds up the
losses, which for three weighted heads is a dozen launches more, of numbers and not of maps. Traced
code, tensor subclasses and torch.func go through the op.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclip.ops.structure_loss.shared import each_upstream, goes_through_op, outputs

DEVICES = ("cuda", "xpu")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def forward(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The op `structure_loss`."""
    from fastclip.kernels.structure_loss import launch as kernels  # imports triton

    found = outputs(logits, mask, mask.shape)
    with torch.accelerator.device_index(mask.device.index):
        kernels.forward(*found, logits, mask, valid, *options)
    return found


def backward(
    grad_loss: Tensor, sums: Tensor, columns: Tensor, logits: Sequence[Tensor], *inputs: Any
) -> list[Tensor]:
    """The op `structure_loss_backward`."""
    return _gradients(grad_loss, [1.0] * len(logits), sums, columns, logits, *inputs)


def takes(device: str) -> bool:
    """Whether Triton runs here for a device type."""
    return device in DEVICES and HAS_TRITON


def total(
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    factors: Sequence[float],
    *options: Any,
) -> Tensor:
    """The sum over heads, images and channels of factors[head] * loss: 0-d."""
    return _Total.apply(mask, valid, factors, options, *logits)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor,
        valid: Tensor | None,
        factors: Sequence[float],
        options: tuple[Any, ...],
        *logits: Tensor,
    ) -> Tensor:
        from fastclip.kernels.structure_loss import launch as kernels

        loss, sums, columns = outputs(logits, mask, mask.shape)
        value = loss.new_empty(())
        with torch.accelerator.device_index(mask.device.index):
            kernels.forward(loss, sums, columns, logits, mask, valid, *options)
            kernels.total(value, loss, factors)
        ctx.factors, ctx.options = factors, options
        ctx.save_for_backward(sums, columns, mask, valid, *logits)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        sums, columns, mask, valid, *logits = ctx.saved_tensors
        inputs = (sums, columns, logits, mask, valid, *ctx.options)
        if goes_through_op(upstream):
            each = each_upstream(upstream, ctx.factors, sums)
            grads = torch.ops.fastclip.structure_loss_backward(each, *inputs)
        else:
            grads = _gradients(upstream.expand(sums.shape[:3]), ctx.factors, *inputs)
        return None, None, None, None, *grads


def _gradients(
    grad_loss: Tensor,
    factors: Sequence[float],
    sums: Tensor,
    columns: Tensor,
    logits: Sequence[Tensor],
    *inputs: Any,
) -> list[Tensor]:
    from fastclip.kernels.structure_loss import launch as kernels

    grads = [torch.empty_like(h, memory_format=torch.contiguous_format) for h in logits]
    with torch.accelerator.device_index(sums.device.index):
        kernels.backward(grads, grad_loss, factors, sums, columns, logits, *inputs)
    return grads
