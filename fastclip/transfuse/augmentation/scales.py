"""Multi-scale training: each step at one of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.transfuse.augmentation.draws import mix_seed
from fastclip.transfuse.network.model import PATCH


def scale_of_step(scales: Sequence[float], seed: int, step: int) -> float:
    """One of `scales`, drawn from the seed and the number of the step alone."""
    if not scales:
        return 1.0
    generator = torch.Generator().manual_seed(mix_seed(seed, step, -2))
    return scales[int(torch.randint(len(scales), (), generator=generator))]


def rescale(images: Tensor, masks: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Resizes a batch bilinearly, to the nearest sides that the network takes.

    Args:
        images: uint8 [B, 3, H, W]. masks: uint8 [B, C, H, W].
        scale: factor on both sides, > 0.

    Returns:
        uint8, of sides divisible by 16; itself where these are the sides that it has.

    Source: multi-scale training of PraNet (Fan et al., MICCAI 2020).
    """
    height, width = (max(PATCH, round(side * scale / PATCH) * PATCH) for side in images.shape[-2:])
    if (height, width) == tuple(images.shape[-2:]):
        return images, masks
    both = torch.cat([images, masks], 1).float()
    both = F.interpolate(both, size=(height, width), mode="bilinear", antialias=scale < 1)
    both = both.round_().clamp_(0, 255).to(torch.uint8)
    return both[:, :3], both[:, 3:]
