"""Random numbers of an image: functions of (seed, epoch, row), whatever batch the image is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ANGLE = 25.0  # degrees
MAX_SHIFT = 0.15  # share of the width and of the height
MAX_ZOOM = 0.15  # scale in 1 - MAX_ZOOM .. 1 + MAX_ZOOM
MAX_JITTER = 0.2  # of brightness, contrast and saturation round 1; of the hue, in turns round 0


def mix_seed(seed: int, epoch: int, row: int) -> int:
    """One 63-bit seed of three numbers."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + row + 1) % (1 << 63)


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch; float32 [B] each, on the CPU, but for `jittered`."""

    angle: Tensor  # radians
    shift_x: Tensor  # share of the width
    shift_y: Tensor  # share of the height
    scale: Tensor
    flip_x: Tensor  # -1 where left and right change places, else 1
    flip_y: Tensor
    brightness: Tensor  # factors
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # turns
    jittered: Tensor  # bool [B]: whether the colours change at all


def draw(seeds: Sequence[int]) -> Draws:
    """Affine map and colour jitter with probability 1/2 each, flips with 1/2 each, as published.

    Args:
        seeds: of `mix_seed`, one per image.
    """
    generator = torch.Generator()
    rows = [torch.rand(12, generator=generator.manual_seed(seed)) for seed in seeds]
    u = torch.stack(rows).T  # [12, B] in [0, 1)
    moved, jittered = u[0] < 0.5, u[5] < 0.5
    around = 2 * u - 1  # [-1, 1)
    still = torch.zeros_like(u[0])
    return Draws(
        angle=torch.where(moved, around[1] * MAX_ANGLE, still).deg2rad(),
        shift_x=torch.where(moved, around[2] * MAX_SHIFT, still),
        shift_y=torch.where(moved, around[3] * MAX_SHIFT, still),
        scale=1 + torch.where(moved, around[4] * MAX_ZOOM, still),
        flip_x=torch.where(u[10] < 0.5, -1.0, 1.0),
        flip_y=torch.where(u[11] < 0.5, -1.0, 1.0),
        brightness=1 + around[6] * MAX_JITTER,
        contrast=1 + around[7] * MAX_JITTER,
        saturation=1 + around[8] * MAX_JITTER,
        hue=around[9] * MAX_JITTER,
        jittered=jittered,
    )
