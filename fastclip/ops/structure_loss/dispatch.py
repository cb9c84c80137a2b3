"""The op `structure_loss`: boundary-weighted BCE + weighted IoU of every image, head and channel.

On the CPU it is the native core; on CUDA and XPU Triton, where it is installed. Both go through
torch.library, so that autograd, torch.compile and fake tensors see one op. Other devices run the
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops.structure_loss import cpu
from fastclip.ops.structure_loss import triton as gpu
from fastclip.ops.structure_loss.reference import structure_loss_ref
from fastclip.ops.structure_loss.shared import (
    Options,
    check_memory,
    gradients_of,
    is_eager,
    outputs,
)
from fastclip.ops.structure_loss.transforms import Transformed, batched_backward

_OPTIONS = "int window, float boundary_weight, float smooth, bool weighted_bce, "
_OPTIONS += "bool pixel_iou=False, Tensor? pos_weight=None"
_INPUTS = f"Tensor[] logits, Tensor mask, Tensor? valid, {_OPTIONS}"
# columns: what Triton's backward needs of the windows, [B, C, H, W]; nothing on the CPU.
torch.library.define(
    "fastclip::structure_loss", f"({_INPUTS}) -> (Tensor loss, Tensor sums, Tensor columns)"
)
torch.library.define(
    "fastclip::structure_loss_backward",
    f"(Tensor grad_loss, Tensor sums, Tensor columns, {_INPUTS}) -> Tensor[]",
)


def structure_loss(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None, *options: Any
) -> Tensor:
    """As `structure_loss_ref`, by the implementation for the logits' device."""
    if implementation(mask.device.type)[1]:
        if is_eager(tensors := _tensors(logits, mask, valid)):
            for tensor in tensors:
                check_memory("a tensor of structure_loss", tensor)
        return structure_loss_ref(logits, mask, valid, *options)
    given = Options(*options)
    if torch._C._are_functorch_transforms_active():
        return Transformed.apply(mask, valid, given.pos_weight, given.numbers(), *logits)[0]
    return torch.ops.fastclip.structure_loss(list(logits), mask, valid, *given)[0]


def structure_loss_total(
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    weights: Sequence[float] | Tensor,
    *options: Any,
) -> Tensor:
    """The mean over images and channels of the sum over heads of weights[head] * loss: 0-d."""
    count = mask.shape[0] * mask.shape[1]
    if not isinstance(weights, Tensor) and count and is_eager(_tensors(logits, mask, valid)):
        for backend in (cpu, gpu):
            if backend.takes(mask.device.type):
                return backend.total(logits, mask, valid, [w / count for w in weights], *options)
    loss = structure_loss(logits, mask, valid, *options)
    if isinstance(weights, Tensor):
        return (loss * weights.to(loss)[:, None, None]).sum() / count
    if all(w == 1 for w in weights):
        return loss.sum() / count
    each = loss.sum((1, 2)).unbind()  # numbers, not a tensor: no copy that a graph cannot capture
    return torch.stack([w * total for w, total in zip(weights, each, strict=True)]).sum() / count


def _tensors(logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None) -> list[Tensor]:
    return [*logits, mask] if valid is None else [*logits, mask, valid]


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device, such as "cpu" or "cuda:1"."""
    device = device.partition(":")[0]
    if device in gpu.DEVICES:
        return ("triton", "") if gpu.HAS_TRITON else ("reference", "triton is not installed")
    if device != "cpu":
        return "reference", f"fastclip has no {device} kernel for it yet"
    if native.core is None:
        return "reference", native.why_missing
    return native.name, ""


torch.library.impl("fastclip::structure_loss", "cpu", cpu.forward)
torch.library.impl("fastclip::structure_loss_backward", "cpu", cpu.backward)
torch.library.impl("fastclip::structure_loss", gpu.DEVICES, gpu.forward)
torch.library.impl("fastclip::structure_loss_backward", gpu.DEVICES, gpu.backward)
torch.library.impl("fastclip::structure_loss_backward", "Batched", batched_backward)


@torch.library.register_fake("fastclip::structure_loss")
def _fake_forward(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return outputs(logits, mask, mask.shape if mask.device.type in gpu.DEVICES else (0,))


@torch.library.register_fake("fastclip::structure_loss_backward")
def _fake_backward(
    grad_loss: Tensor, sums: Tensor, columns: Tensor, logits: Sequence[Tensor], *rest: Any
) -> list[Tensor]:
    if logits[0].device.type in gpu.DEVICES:
        return gradients_of(logits)
    return [torch.empty_like(head, memory_format=torch.contiguous_format) for head in logits]


class _Autograd(torch.autograd.Function):
    """Less host time than torch.library.register_autograd, which unpacks every list in Python."""

    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor,
        valid: Tensor | None,
        pos_weight: Tensor | None,
        numbers: tuple[Any, ...],
        *logits: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = torch.ops.fastclip.structure_loss(logits, mask, valid, *numbers, pos_weight)
        ctx.numbers = numbers
        ctx.save_for_backward(*outputs[1:], mask, valid, pos_weight, *logits)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        sums, columns, mask, valid, pos_weight, *logits = ctx.saved_tensors
        grads = [None] * len(logits)
        if grad_outputs[0] is not None:
            grads = torch.ops.fastclip.structure_loss_backward(
                *(grad_outputs[0], sums, columns, logits, mask, valid, *ctx.numbers, pos_weight)
            )
        return None, None, None, None, *grads


@torch.library.impl("fastclip::structure_loss", "Autograd")
def _differentiable(
    logits: Sequence[Tensor], mask: Tensor, valid: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    given = Options(*options)
    return _Autograd.apply(mask, valid, given.pos_weight, given.numbers(), *logits)


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "structure_loss has no second derivative: its backward cannot be recorded "
        "with create_graph=True"
    )


torch.library.register_autograd("fastclip::structure_loss_backward", _no_second_derivative)
