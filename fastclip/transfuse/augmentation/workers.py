"""Augmentation image by image, in the processes that fetch them: torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from fastclip.transfuse.augmentation.draws import MAX_ANGLE, MAX_JITTER, MAX_SHIFT, MAX_ZOOM


def published_augmentation() -> v2.Transform:
    """Shift and scale by up to 15 %, rotation by up to 25 degrees, colour jitter, flips."""
    scales = (1 - MAX_ZOOM, 1 + MAX_ZOOM)
    affine = v2.RandomAffine(MAX_ANGLE, translate=(MAX_SHIFT, MAX_SHIFT), scale=scales)
    jitter = v2.ColorJitter(*[MAX_JITTER] * 4)
    return v2.Compose(
        [
            v2.RandomApply([affine], p=0.5),
            v2.RandomApply([jitter], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
        ]
    )


def augment_image(
    transform: v2.Transform, image: Tensor, mask: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """`transform` of uint8 [3, H, W] and [C, H, W], from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
    return image.as_subclass(Tensor), mask.as_subclass(Tensor)
