"""What the implementations of `structure_loss` share: options, readable tensors, outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

PLAIN = frozenset({Tensor, nn.Parameter})


class Options(NamedTuple):
    """What is no tensor of pixels, in the order of the op's schema."""

    window: int
    boundary_weight: float
    smooth: float
    weighted_bce: bool
    pixel_iou: bool = False
    pos_weight: Tensor | None = None  # [C], of the loss's dtype

    def numbers(self) -> tuple[int, float, float, bool, bool]:
        """All but the tensor."""
        return self.window, self.boundary_weight, self.smooth, self.weighted_bce, self.pixel_iou


def real_dtype(logits: Sequence[Tensor]) -> torch.dtype:
    """The dtype of the loss."""
    return torch.float64 if logits[0].dtype == torch.float64 else torch.float32


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor; of a subclass that is plain data, as torchvision's masks are, that data.

    A subclass with a `__torch_dispatch__` of its own stays: its memory may lie elsewhere.
    """
    kind = type(tensor)
    if kind in PLAIN or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def is_eager(tensors: Iterable[Tensor]) -> bool:
    """Whether nothing but autograd watches what is done with these tensors."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and PLAIN.issuperset(map(type, tensors))
    )


def check_memory(name: str, tensor: Tensor) -> None:
    """ValueError where a storage was freed or cut under its tensor: torch itself would crash."""
    count = tensor.numel()
    if count == 0 or tensor._is_zerotensor():
        return
    if not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in steps)
    needed = (tensor.storage_offset() + count) * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if held < needed:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} reads {needed} bytes of a storage of {held}: "
            "it was freed or resized under the tensor; pass one whose storage is still there"
        )


def readable(name: str, tensor: Tensor) -> Tensor:
    """The tensor as a kernel may read it: with memory, whose values are the tensor's own."""
    tensor = unwrapped(tensor)
    check_memory(name, tensor)
    if tensor._is_zerotensor():  # has no memory by design
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


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


def gradients_of(logits: Sequence[Tensor]) -> list[Tensor]:
    """Memory for the gradients on a GPU: as the logits lie, where all lie in one way, without gaps
    and row by row or channels last; else contiguous."""
    first = logits[0]
    is_dense = first.is_contiguous() or first.is_contiguous(memory_format=torch.channels_last)
    if is_dense and all(head.stride() == first.stride() for head in logits):
        return [
            torch.empty_strided(first.shape, first.stride(), dtype=first.dtype, device=first.device)
            for _ in logits
        ]
    return [torch.empty_like(head, memory_format=torch.contiguous_format) for head in logits]


def goes_through_op(upstream: Tensor) -> bool:
    """Whether the gradient of a total is for the op: batched, or recorded, for which it raises."""
    return torch._C._functorch.is_legacy_batchedtensor(upstream) or torch.is_grad_enabled()


def each_upstream(upstream: Tensor, factors: Sequence[float], sums: Tensor) -> Tensor:
    """The upstream gradient of every loss, from that of the total: [heads, B, C]."""
    weights = torch.tensor(factors, dtype=upstream.dtype, device=sums.device)
    return (weights * upstream).view(-1, 1, 1).expand(sums.shape[:3])
