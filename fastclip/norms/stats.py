"""Mean, standard deviation, smallest and largest element of tensors, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastclip.ops.grad_norm.reference import moved
from fastclip.ops.grad_norm.sorting import is_dtensor


class TensorStats(NamedTuple):
    """What the elements of one tensor are like."""

    mean: float
    std: float  # of a sample, as torch.std: NaN where there is only one element
    min: float
    max: float

    @property
    def abs_max(self) -> float:
        """The largest magnitude."""
        return max(abs(self.min), abs(self.max)) if self.min == self.min else math.nan


@torch.no_grad()
def stats_of(tensors: Sequence[Tensor]) -> Tensor:
    """The four numbers of each tensor: [tensors, 4], float64; NaN for those of an empty one.

    torch reads each tensor for them, as a float64 copy that is freed before the next is made.
    """
    if not tensors:
        return torch.zeros(0, 4, dtype=torch.float64)
    home = next((t.device for t in tensors if t.device.type != "cpu"), tensors[0].device)
    return torch.stack([moved(_stats(t), home) for t in tensors])


def _stats(tensor: Tensor) -> Tensor:
    if is_dtensor(tensor):
        tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    values = tensor.double().flatten()
    if not values.numel():
        return values.new_full((4,), math.nan)
    std = values.std() if values.numel() > 1 else values.new_full((), math.nan)
    return torch.stack([values.mean(), std, *values.aminmax()])
