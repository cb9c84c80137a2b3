"""`structure_loss` through Triton: the ops, and the eager path to the total.

The eager path is three launches, forward and backward. Through the op, torch weighs and adds up the
losses, which for three weighted heads is a dozen launches more, of numbers and not of maps. Traced
code, tensor subclasses and torch.func go through the op.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclip.ops.structure_loss.shared import (
    Options,
    each_upstream,
    goes_through_op,
    gradients_of,
    outputs,
    readable,
)

DEVICES = ("cuda", "xpu")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def _readable(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    heads = [readable("logits", head) for head in logits]
    return heads, readable("mask", mask), None if valid is None else readable("valid", valid)


def forward(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The op `structure_loss`."""
    from fastclip.kernels.structure_loss import launch as kernels  # imports triton

    found = outputs(logits, mask, mask.shape)
    with torch.accelerator.device_index(mask.device.index):
        kernels.forward(*found, *_readable(logits, mask, valid), *_complete(options))
    return found


def backward(
    grad_loss: Tensor, sums: Tensor, columns: Tensor, logits: Sequence[Tensor], *inputs: Any
) -> list[Tensor]:
    """The op `structure_loss_backward`."""
    factors = [1.0] * len(logits)
    return _gradients(grad_loss, factors, sums, columns, logits, *inputs)


def _complete(options: Sequence[Any]) -> tuple[Any, ...]:
    given = Options(*options)
    if given.pos_weight is None:
        return given
    return given._replace(pos_weight=readable("pos_weight", given.pos_weight))


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
    given = Options(*options)
    return _Total.apply(mask, valid, given.pos_weight, factors, given.numbers(), *logits)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor,
        valid: Tensor | None,
        pos_weight: Tensor | None,
        factors: Sequence[float],
        numbers: tuple[Any, ...],
        *logits: Tensor,
    ) -> Tensor:
        from fastclip.kernels.structure_loss import launch as kernels

        loss, sums, columns = outputs(logits, mask, mask.shape)
        value = loss.new_empty(())
        with torch.accelerator.device_index(mask.device.index):
            options = _complete((*numbers, pos_weight))
            inputs = (*_readable(logits, mask, valid), *options, value, factors)
            kernels.forward(loss, sums, columns, *inputs)
        ctx.factors, ctx.numbers = factors, numbers
        ctx.save_for_backward(sums, columns, mask, valid, pos_weight, *logits)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        sums, columns, mask, valid, pos_weight, *logits = ctx.saved_tensors
        inputs = (sums, columns, logits, mask, valid, *ctx.numbers, pos_weight)
        if goes_through_op(upstream):
            each = each_upstream(upstream, ctx.factors, sums)
            grads = torch.ops.fastclip.structure_loss_backward(each, *inputs)
        else:
            grads = _gradients(upstream.expand(sums.shape[:3]), ctx.factors, *inputs)
        return None, None, None, None, None, *grads


def _gradients(
    grad_loss: Tensor,
    factors: Sequence[float],
    sums: Tensor,
    columns: Tensor,
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    from fastclip.kernels.structure_loss import launch as kernels

    grads = gradients_of(logits)
    with torch.accelerator.device_index(sums.device.index):
        inputs = (*_readable(logits, mask, valid), *_complete(options))
        kernels.backward(grads, readable("grad_loss", grad_loss), factors, sums, columns, *inputs)
    return grads
