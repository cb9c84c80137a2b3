"""`structure_loss` under torch.func (vmap, grad, jacrev, all composed) and batched gradients.

Both scale unit gradients by the upstream ones. The units are made from widened logits: float16's
would underflow before a loss scale comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclip.ops.structure_loss.shared import real_dtype


def batched_backward(
    grad_loss: Tensor, sums: Tensor, columns: Tensor, logits: Sequence[Tensor], *inputs: Any
) -> list[Tensor]:
    """The backward op for a batch of upstream gradients.

    `is_grads_batched` and `jacobian(vectorize=True)` ask for it, whose batching is older than
    torch.func's.
    """
    real = real_dtype(logits)
    ones = torch.ones(sums.shape[:3], dtype=real, device=sums.device)
    wide = [head.to(real) for head in logits]
    units = torch.ops.fastclip.structure_loss_backward(ones, sums, columns, wide, *inputs)
    return _scaled(units, grad_loss, logits[0].dtype)


def _scaled(units: Sequence[Tensor], grad_loss: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [
        (g[..., None, None] * u).to(dtype) for g, u in zip(grad_loss.unbind(), units, strict=True)
    ]


class Transformed(torch.autograd.Function):
    """The loss of every head, image and channel, and its unit gradients by their logits.

    With both as outputs nothing but tensors has to be saved, as torch.func's rules want it, and a
    mapped dimension goes into the batch.
    """

    @staticmethod
    def forward(
        mask: Tensor,
        valid: Tensor | None,
        pos_weight: Tensor | None,
        numbers: tuple[Any, ...],
        *logits: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            real = real_dtype(logits)
            leaves = [head.detach().to(real).requires_grad_() for head in logits]
            loss = torch.ops.fastclip.structure_loss(leaves, mask, valid, *numbers, pos_weight)[0]
            units = torch.autograd.grad(loss.sum(), leaves)
        return (loss.detach(), *units)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.logits_dtype = inputs[4].dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *grad_units: Tensor | None) -> Any:
        if any(grad is not None for grad in grad_units):
            raise RuntimeError("structure_loss has no second derivative")
        units = ctx.saved_tensors
        if grad_loss is None:
            return None, None, None, None, *(None for _ in units)
        return None, None, None, None, *_scaled(units, grad_loss, ctx.logits_dtype)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError("structure_loss has no forward-mode derivative: use reverse mode")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        mask: Tensor,
        valid: Tensor | None,
        pos_weight: Tensor | None,
        numbers: tuple[Any, ...],
        *logits: Tensor,
    ) -> Any:
        size = info.batch_size
        if in_dims[2] is not None:
            raise ValueError("pos_weight is one for the whole batch: vmap cannot map over it")

        def folded(x: Tensor | None, dim: int | None) -> Tensor | None:
            if x is None:
                return None
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        heads = [folded(x, dim) for x, dim in zip(logits, in_dims[4:], strict=True)]
        masks = folded(mask, in_dims[0]), folded(valid, in_dims[1])
        loss, *units = Transformed.apply(*masks, pos_weight, numbers, *heads)
        units = [unit.unflatten(0, (size, -1)) for unit in units]
        return (loss.unflatten(1, (size, -1)), *units), (1, *(0 for _ in units))
