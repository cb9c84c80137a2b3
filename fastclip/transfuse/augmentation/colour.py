"""Colour jitter of a batch, with factors of each image's own."""

from __future__ import annotations

import torch
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, as torchvision's
_EXACT = 1 << 16  # grays are summed as whole multiples of 1 / _EXACT: in any order the same sum


def jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Brightness, contrast, saturation and hue, in this order.

    Args:
        images: float32 [B, 3, H, W] in 0..1.
        brightness, contrast, saturation: factors [B]; 1 changes nothing.
        hue: turns of the colour circle [B].

    Returns:
        float32 [B, 3, H, W] in 0..1. An image's result does not depend on the others.
    """
    images = (images * _per_image(brightness)).clamp(0, 1)
    images = _blend(images, _mean_gray(images), contrast)
    images = _blend(images, _gray(images), saturation)
    return turn_hue(images, hue)


def turn_hue(images: Tensor, hue: Tensor) -> Tensor:
    """Turns the hue of float32 [B, 3, H, W] in 0..1 by `hue` [B] turns; gray pixels stay.

    Source: the formula of HSV to RGB without branches (https://en.wikipedia.org/wiki/HSL_and_HSV).
    """
    red, green, blue = images.unbind(1)  # [B, H, W]
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma == 0, 1, chroma)
    # Where two channels are the largest, both formulas of them give the same hue.
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * hue.view(-1, 1, 1)
    turned = torch.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        k = sixths + offset
        k = k - 6 * (k / 6).floor_()  # a third of the cost of torch.remainder
        torch.sub(value, chroma * torch.minimum(k, 4 - k).clamp_(0, 1), out=turned[:, channel])
    return turned


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other."""
    return (other + _per_image(factor) * (images - other)).clamp(0, 1)


def _gray(images: Tensor) -> Tensor:
    """[B, 1, H, W]"""
    red, green, blue = images.unbind(1)
    return (GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue).unsqueeze(1)


def _mean_gray(images: Tensor) -> Tensor:
    """[B, 1, 1, 1]"""
    whole = (_gray(images) * _EXACT).round_().to(torch.int32)
    total = whole.flatten(1).sum(1, dtype=torch.int64)
    return _per_image(total.float() / (_EXACT * whole[0].numel()))
