"""What the network takes: images in float32, of ImageNet's mean and deviation."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32, ImageNet mean and deviation, channels last."""
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    images = images.to(memory_format=torch.channels_last)
    return (images.float() / 255 - mean) / std
