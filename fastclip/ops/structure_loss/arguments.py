"""The arguments of `structure_loss`: what each must be, and what is said of a wrong one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclip.ops.structure_loss.shared import check_memory, is_eager, real_dtype, unwrapped

_CHOICES = {"bce": ("weighted", "mean"), "iou": ("image", "pixel"), "reduction": ("mean", "none")}
_LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_WINDOW = 2**63 - 1


def checked_heads(logits: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The heads, which share shape, dtype and device."""
    if isinstance(logits, Tensor):
        heads = [logits]
    else:
        try:
            heads = list(logits)
        except TypeError:
            heads = []
    if not heads or not all(isinstance(head, Tensor) for head in heads):
        raise TypeError(
            f"logits must be a tensor or a non-empty sequence of tensors, got {type(logits)}"
        )
    heads = [unwrapped(head) for head in heads]
    first = heads[0]
    if first.ndim != 4:
        raise ValueError(f"logits must be [B, C, H, W], got shape {tuple(first.shape)}")
    if first.dtype not in _LOGIT_DTYPES:
        raise ValueError(f"logits must be floating point, got {first.dtype}")
    if first.shape[2] == 0 or first.shape[3] == 0:
        raise ValueError(f"logits must have rows and columns, got shape {tuple(first.shape)}")
    common = (first.shape, first.dtype, first.device)
    for head in heads:
        _check_strided("logits", head)
        if (head.shape, head.dtype, head.device) != common:
            raise ValueError(
                "all heads must share shape, dtype and device, got "
                f"{tuple(first.shape)} {first.dtype} {first.device} and "
                f"{tuple(head.shape)} {head.dtype} {head.device}"
            )
    return heads


def checked_mask(mask: Tensor, first: Tensor) -> Tensor:
    """The mask, which has the shape and device of the first head."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask)}")
    if mask.shape != first.shape:
        raise ValueError(
            f"mask must have the logits' shape {tuple(first.shape)}, got {tuple(mask.shape)}"
        )
    if mask.device != first.device:
        raise ValueError(f"mask is on {mask.device}, the logits are on {first.device}")
    if mask.is_complex():
        raise ValueError(f"mask must be real, got {mask.dtype}")
    if mask.requires_grad:
        raise ValueError("mask requires grad, but the loss has no gradient for it: detach it")
    _check_strided("mask", mask)
    return unwrapped(mask)


def _dense(name: str, tensor: Tensor) -> Tensor:
    """The tensor, of which something is made before an implementation can check its memory."""
    _check_strided(name, tensor)
    tensor = unwrapped(tensor)
    if is_eager([tensor]):
        check_memory(name, tensor)
    return tensor


def _check_strided(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = tensor.dtype if tensor.is_quantized else tensor.layout
        raise ValueError(
            f"{name} must be a dense tensor, got {kind}: use to_dense() or dequantize()"
        )


def checked_valid(valid: Tensor | None, mask: Tensor) -> Tensor | None:
    """The map of valid pixels, of the mask's shape."""
    if valid is None:
        return None
    if not isinstance(valid, Tensor):
        raise TypeError(f"valid must be a tensor, got {type(valid)}")
    per_image = (mask.shape[0], 1, *mask.shape[2:])
    if tuple(valid.shape) not in (per_image, tuple(mask.shape)) or valid.device != mask.device:
        raise ValueError(
            f"valid must be {per_image} or have the mask's shape, on {mask.device}; got "
            f"{tuple(valid.shape)} on {valid.device}"
        )
    valid = _dense("valid", valid).detach()
    return valid if valid.shape == mask.shape else valid.expand_as(mask)


def check_options(window: int, boundary_weight: float, smooth: float, **choices: str) -> None:
    """What needs no tensor."""
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"window must be an int, got {window!r}")
    if window < 1 or window % 2 == 0 or window > _LARGEST_WINDOW:
        raise ValueError(f"window must be odd, positive and below 2**63, got {window}")
    weight = _number("boundary_weight", boundary_weight)
    if not 0 <= weight < math.inf:
        raise ValueError(f"boundary_weight must be finite and >= 0, got {boundary_weight!r}")
    if not 0 < _number("smooth", smooth) < math.inf:
        raise ValueError(f"smooth must be finite and > 0, got {smooth!r}")
    for name, value in choices.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {_CHOICES[name]}, got {value!r}")


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def positive_numbers(pos_weight: float | Sequence[float]) -> list[float]:
    """The numbers of a pos_weight that is no tensor."""
    each: Sequence[float] = [pos_weight] if _is_scalar(pos_weight) else pos_weight  # type: ignore
    numbers = [_number("pos_weight", value) for value in each]
    if not numbers or not all(0 <= value < math.inf for value in numbers):
        raise ValueError(f"pos_weight must be finite and >= 0, got {pos_weight!r}")
    return numbers


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float | str) or not hasattr(value, "__len__")


def checked_pos_weight(
    pos_weight: float | Sequence[float] | Tensor | None, mask: Tensor, logits: Sequence[Tensor]
) -> Tensor | None:
    """One weight for each channel: [C], of the loss's dtype."""
    if pos_weight is None:
        return None
    real, channels = real_dtype(logits), mask.shape[1]
    if not isinstance(pos_weight, Tensor):
        numbers = positive_numbers(pos_weight)
        if len(numbers) not in (1, channels):
            raise ValueError(
                f"pos_weight must be one number or one per channel ({channels}), got {pos_weight!r}"
            )
        # Filled on the device: a graph could not capture a copy to it.
        each = [torch.full((1,), n, dtype=real, device=mask.device) for n in numbers]
        return torch.cat(each).expand(channels)
    shape = tuple(pos_weight.shape)
    per_channel = [(channels,), (channels, 1, 1), (1, channels, 1, 1)]
    if pos_weight.numel() != 1 and shape not in per_channel:
        raise ValueError(
            f"pos_weight must be one number or [C] or [C, 1, 1] with C = {channels}, got {shape}"
        )
    if pos_weight.is_complex() or pos_weight.device != mask.device:
        raise ValueError(
            f"pos_weight must be real and on {mask.device}, got {pos_weight.dtype} on "
            f"{pos_weight.device}"
        )
    if pos_weight.requires_grad:
        raise ValueError("pos_weight requires grad, but the loss has no gradient for it: detach it")
    return _dense("pos_weight", pos_weight).to(real).reshape(-1).expand(channels)


def checked_head_weights(
    head_weights: Sequence[float] | Sequence[Tensor] | Tensor | None, heads: int
) -> Sequence[float] | Tensor:
    """One weight per head; a tensor where one is given, which may require grad."""
    if head_weights is None:
        return [1.0] * heads
    wrong = f"head_weights must hold one number per head ({heads}), got "
    if isinstance(head_weights, Tensor):
        if tuple(head_weights.shape) != (heads,) or head_weights.is_complex():
            raise ValueError(f"{wrong}{head_weights.dtype} of shape {tuple(head_weights.shape)}")
        return _dense("head_weights", head_weights)
    try:
        each = list(head_weights)
    except TypeError:
        raise TypeError(f"{wrong}{head_weights!r}") from None
    if len(each) != heads:
        raise ValueError(f"{wrong}{head_weights!r}")
    if any(isinstance(value, Tensor) for value in each):
        if any(isinstance(value, Tensor) and value.numel() != 1 for value in each):
            raise ValueError(f"{wrong}{head_weights!r}")
        return torch.stack([torch.as_tensor(value).reshape(()) for value in each])
    return [_number("head_weights", value) for value in each]
