"""Augmentation of a batch on the device that holds it: one resampling, then colours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.transfuse.augmentation.colour import jitter
from fastclip.transfuse.augmentation.draws import Draws, draw

AT_A_TIME = 2  # images on a CPU, whose caches then hold them: half the time of sixteen


def augment_batch(images: Tensor, masks: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Shift, scale, rotation, flips and colour jitter; image and mask are moved together.

    Args:
        images: uint8 [B, 3, H, W].
        masks: uint8 [B, C, H, W], on the same device.
        seeds: one per image, of `mix_seed`: what happens to an image depends on its seed alone.

    Returns:
        Both as they came, resampled bilinearly (masks become soft along their edges); what comes
        from outside the image is 0.
    """
    if images.device.type == "cpu" and len(seeds) > AT_A_TIME:
        starts = range(0, len(seeds), AT_A_TIME)
        parts = [slice(start, start + AT_A_TIME) for start in starts]
        each = [_augment(images[part], masks[part], seeds[part]) for part in parts]
        return torch.cat([pair[0] for pair in each]), torch.cat([pair[1] for pair in each])
    return _augment(images, masks, seeds)


def _augment(images: Tensor, masks: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    draws = draw(seeds)
    both = torch.cat([images, masks], 1).float()  # [B, 3 + C, H, W]
    moved = F.grid_sample(both, _grid(draws, both), padding_mode="zeros", align_corners=False)
    pixels = moved[:, :3]
    if (rows := draws.jittered.nonzero().flatten()).numel():
        on_device = [t[rows].to(images.device, non_blocking=True) for t in _colours(draws)]
        rows = rows.to(images.device, non_blocking=True)
        pixels[rows] = jitter(pixels[rows] / 255, *on_device) * 255
    moved = moved.round_().to(torch.uint8)
    return moved[:, :3], moved[:, 3:]


def _colours(draws: Draws) -> tuple[Tensor, ...]:
    return draws.brightness, draws.contrast, draws.saturation, draws.hue


def _grid(draws: Draws, batch: Tensor) -> Tensor:
    """Where each pixel of the result comes from, [B, H, W, 2] as `grid_sample` takes it.

    Written out instead of `affine_grid`, whose matrix product may round otherwise in another batch.
    """
    height, width = batch.shape[-2:]
    x = torch.arange(width) - (width - 1) / 2  # [W], pixels from the middle
    y = torch.arange(height) - (height - 1) / 2
    x = draws.flip_x[:, None] * x - draws.shift_x[:, None] * width  # [B, W]
    y = draws.flip_y[:, None] * y - draws.shift_y[:, None] * height  # [B, H]
    cos = (draws.angle.cos() / draws.scale)[:, None]
    sin = (draws.angle.sin() / draws.scale)[:, None]
    parts = (2 / width * cos * x, 2 / width * sin * y, 2 / height * sin * x, 2 / height * cos * y)
    xx, xy, yx, yy = (part.to(batch.device, non_blocking=True) for part in parts)
    across = xx[:, None, :] + xy[:, :, None]  # [B, H, W]
    down = yy[:, :, None] - yx[:, None, :]
    return torch.stack([across, down], -1)
