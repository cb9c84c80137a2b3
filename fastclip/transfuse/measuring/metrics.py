"""Overlap of binary masks, one value per image; and what each metric is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Metric(NamedTuple):
    """How a metric is shown, and which way is better."""

    label: str
    higher_is_better: bool = True
    digits: int = 4


# In the order of every table, column and file.
METRICS = {
    "dice": Metric("Dice"),
    "iou": Metric("IoU"),
    "accuracy": Metric("accuracy"),
    "precision": Metric("precision"),
    "sensitivity": Metric("sensitivity"),
    "specificity": Metric("specificity"),
    "mae": Metric("MAE", higher_is_better=False),
    "hd95": Metric("HD95 (px)", higher_is_better=False, digits=2),
    "surface_dice": Metric("surface Dice"),
    "weighted_f": Metric("weighted F"),
    "s_measure": Metric("S-measure"),
    "e_measure_mean": Metric("mean E-measure"),
    "e_measure_max": Metric("max E-measure"),
}


class Scores(NamedTuple):
    """One value per image, each [B], float32 in 0..1."""

    dice: Tensor
    iou: Tensor
    accuracy: Tensor
    precision: Tensor
    sensitivity: Tensor
    specificity: Tensor


def binary_scores(prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> Scores:
    """Compare masks image by image.

    Args:
        prediction: bool [B, ...].
        truth: bool, the same shape.
        valid: bool, the same shape; where it is False a pixel counts nowhere.

    Returns:
        With the counts TP, FP, FN, TN of an image's pixels: Dice 2TP / (2TP + FP + FN), IoU
        TP / (TP + FP + FN), accuracy (TP + TN) / all, precision TP / (TP + FP), sensitivity
        TP / (TP + FN), specificity TN / (TN + FP).

        Where both masks are empty, all are 1; where one is, Dice, IoU, precision and sensitivity
        are 0. In the same way specificity is 1 where both masks leave no background, and 0 where
        one does; accuracy is 1 where no pixel is valid.

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
    counted = torch.ones_like(truth) if valid is None else valid.flatten(1)
    tp = (prediction & truth & counted).sum(1)
    fp = (prediction & ~truth & counted).sum(1)
    fn = (~prediction & truth & counted).sum(1)
    tn = counted.sum(1) - tp - fp - fn
    return Scores(
        dice=_share(2 * tp, fp + fn),
        iou=_share(tp, fp + fn),
        accuracy=_share(tp + tn, fp + fn),
        precision=_share(tp, fp, fn),
        sensitivity=_share(tp, fn, fp),
        specificity=_share(tn, fp, fn),
    )


def _share(right: Tensor, wrong: Tensor, elsewhere: Tensor | None = None) -> Tensor:
    """right / (right + wrong); of nothing, 1, or 0 where something is wrong elsewhere."""
    total = right + wrong
    of_nothing = torch.ones_like(right) if elsewhere is None else elsewhere == 0
    # float32 holds whole numbers up to 2^24, and photographs have more pixels.
    shares = right.double() / total.clamp(min=1)
    return torch.where(total > 0, shares, of_nothing.double()).float()
