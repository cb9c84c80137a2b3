"""What the implementations of `structure_loss` share: outputs, and a total's upstream gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def real_dtype(logits: Sequence[Tensor]) -> torch.dtype:
    """The dtype of the loss."""
    return torch.float64 if logits[0].dtype == torch.float64 else torch.float32


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


def goes_through_op(upstream: Tensor) -> bool:
    """Whether the gradient of a total is for the op: batched, or recorded, for which it raises."""
    return torch._C._functorch.is_legacy_batchedtensor(upstream) or torch.is_grad_enabled()


def each_upstream(upstream: Tensor, factors: Sequence[float], sums: Tensor) -> Tensor:
    """The upstream gradient of every loss, from that of the total: [heads, B, C]."""
    weights = torch.tensor(factors, dtype=upstream.dtype, device=sums.device)
    return (weights * upstream).view(-1, 1, 1).expand(sums.shape[:3])
