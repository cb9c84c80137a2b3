"""Gradients that this rank lacks and others may have: zeros, which take part in reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastclip.ops.grad_norm.sorting import is_dtensor


class Measured(NamedTuple):
    """Gradients to measure one by one, the same ones on all ranks."""

    tensors: list[Tensor]  # zeros stand in for what is absent
    present: list[int] | None  # rows of `tensors` that are gradients; None for all


def is_absent(parameter: Any) -> bool:
    """Whether it has no gradient here but may have one on other ranks, which wait for this one."""
    return parameter.grad is None and is_dtensor(parameter) and parameter.requires_grad


def stand_in(parameter: Any) -> Tensor:
    """Zeros in the layout of a DTensor, which take the memory of one element."""
    from torch.distributed.tensor import DTensor

    local = parameter._local_tensor
    return DTensor.from_local(
        local.new_zeros(()).expand(local.shape),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def measured(parameters: Sequence[Tensor]) -> Measured:
    """The gradients that exist here, and zeros for those that may exist elsewhere, in order."""
    if not any(is_absent(q) for q in parameters):
        return Measured([q.grad for q in parameters if q.grad is not None], None)
    some = [q for q in parameters if q.grad is not None or is_absent(q)]
    present = [row for row, q in enumerate(some) if q.grad is not None]
    return Measured([stand_in(q) if q.grad is None else q.grad for q in some], present)
