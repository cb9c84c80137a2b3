"""Dice, IoU and accuracy of binary masks, one value per image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """One value per image, each [B], float32 in 0..1."""

    dice: Tensor
    iou: Tensor
    accuracy: Tensor


def binary_scores(prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> Scores:
    """Compare masks image by image.

    Args:
        prediction: bool [B, ...].
        truth: bool, the same shape.
        valid: bool, the same shape; where it is False a pixel counts nowhere.

    Returns:
        Dice 2|P∩T| / (|P| + |T|) and IoU |P∩T| / |P∪T|, both 1 where prediction and truth are
        empty, and the share of pixels that agree (1 where none is valid).

    Raises:
        ValueError: two shapes, or anything but bool.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {list(prediction.shape)}, truth {list(truth.shape)}")
    if prediction.dtype != torch.bool or truth.dtype != torch.bool:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")
    if valid is not None and (valid.shape, valid.dtype) != (truth.shape, torch.bool):
        raise ValueError(f"valid is {list(valid.shape)} {valid.dtype}, truth {list(truth.shape)}")
    prediction, truth = prediction.flatten(1), truth.flatten(1)
    agree = (prediction == truth).float().mean(1)
    if valid is not None:
        valid = valid.flatten(1)
        count = valid.sum(1)
        same = ((prediction == truth) & valid).sum(1).float()
        agree = torch.where(count > 0, same / count.clamp(min=1), torch.ones_like(same))
        prediction, truth = prediction & valid, truth & valid
    both = (prediction & truth).sum(1).float()
    total = (prediction.sum(1) + truth.sum(1)).float()
    union = total - both
    one = torch.ones_like(both)
    return Scores(
        dice=torch.where(total > 0, 2 * both / total.clamp(min=1), one),
        iou=torch.where(union > 0, both / union.clamp(min=1), one),
        accuracy=agree,
    )
