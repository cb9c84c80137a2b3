"""Lesion-like images made on the fly, for trying the trainer without data."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.transfuse.data.samples import Samples, Size


def synthetic_samples(count: int, size: Size, seed: int) -> Samples:
    """Dark, ragged blobs with a soft rim on uneven skin, some hair, some noise.

    Args:
        count: number of pairs.
        size: (H, W).
        seed: the same seed gives the same pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(count, 3, *size, dtype=torch.uint8)
    masks = torch.empty(count, 1, *size, dtype=torch.uint8)
    for row in range(count):
        image, mask = _lesion(size, generator)
        images[row] = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        masks[row, 0] = mask.to(torch.uint8) * 255
    names = [f"synthetic_{seed}_{row:05d}" for row in range(count)]
    return Samples(images, masks, names, f"synthetic (seed {seed})")


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _smooth(generator: torch.Generator, cells: int, size: Size) -> Tensor:
    """Smooth noise of about `cells` bumps across, [H, W], standard deviation about 1."""
    coarse = torch.randn(1, 1, cells + 2, cells + 2, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0, 0]


def _lesion(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """One image [3, H, W] in 0..1 and its mask [H, W] bool."""
    height, width = size
    y = torch.linspace(-1, 1, height)[:, None] * (height / width)
    x = torch.linspace(-1, 1, width)[None, :]

    # The outline: a radius in polar coordinates, with five harmonics.
    cy, cx = _uniform(g, -0.3, 0.3, 2).tolist()
    squash, tilt = _uniform(g, 0.7, 1.4, 1).item(), _uniform(g, 0, math.pi, 1).item()
    u = (x - cx) * math.cos(tilt) + (y - cy) * math.sin(tilt)
    v = ((y - cy) * math.cos(tilt) - (x - cx) * math.sin(tilt)) * squash
    angle, distance = torch.atan2(v, u), torch.hypot(u, v)
    radius = torch.full_like(angle, _uniform(g, 0.15, 0.5, 1).item())
    for harmonic in range(2, 7):
        amplitude, phase = torch.rand(2, generator=g).tolist()
        ripple = 0.25 * amplitude / harmonic * torch.cos(harmonic * angle + 2 * math.pi * phase)
        radius = radius * (1 + ripple)
    rim = _uniform(g, 0.01, 0.06, 1).item()
    alpha = torch.sigmoid((radius - distance) / rim)

    skin = torch.tensor([0.80, 0.62, 0.52]) * _uniform(g, 0.75, 1.15, 1) + _uniform(
        g, -0.06, 0.06, 3
    )
    contrast = _uniform(g, 0.35, 0.85, 1)
    lesion = skin * contrast * torch.tensor([0.95, 0.8, 0.75])
    light = 1 + 0.06 * _smooth(g, 2, size) - 0.12 * (x**2 + y**2)
    mottle = 1 + 0.12 * _smooth(g, 8, size)
    image = skin[:, None, None] * (1 - alpha) + lesion[:, None, None] * mottle * alpha
    image = image * light * _hair(size, g) + 0.02 * torch.randn(3, *size, generator=g)
    return image, distance < radius


def _hair(size: Size, g: torch.Generator) -> Tensor:
    """A factor [H, W]: below 1 along a few arcs."""
    height, width = size
    y = torch.arange(height)[:, None] / width
    x = torch.arange(width)[None, :] / width
    factor = torch.ones(size)
    for _ in range(int(torch.randint(0, 6, (1,), generator=g))):
        cx, cy = _uniform(g, -2, 3, 2).tolist()
        through_x, through_y = torch.rand(2, generator=g).tolist()
        arc = math.hypot(through_x - cx, through_y * height / width - cy)
        off = (torch.hypot(x - cx, y - cy) - arc).abs() * width  # pixels
        factor = factor * (1 - 0.6 * torch.exp(-(off**2)))
    return factor
