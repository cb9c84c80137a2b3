"""All metrics of one image's probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastclip.transfuse.measuring.metrics import binary_scores
from fastclip.transfuse.measuring.saliency import saliency_scores
from fastclip.transfuse.measuring.surface import surface_scores

CURVE = "e_measure"  # of 256 thresholds; all other scores are numbers
SALIENCY = ("weighted_f", "s_measure", CURVE)


@dataclass(frozen=True)
class Rules:
    """How probabilities become scores.

    Args:
        threshold: probability from which a pixel belongs to the mask.
        tolerance_px: of the surface Dice.
        saliency: also the measures of PySODMetrics.
    """

    threshold: float = 0.5
    tolerance_px: float = 2.0
    saliency: bool = False


def image_scores(
    probability: Tensor, truth: Tensor, valid: Tensor | None, rules: Rules
) -> dict[str, np.ndarray]:
    """Measure one image.

    Args:
        probability: float [C, H, W], finite.
        truth: uint8 [C, H, W] of 0..255; object from 128 up.
        valid: bool [1, H, W]; where it is False a pixel counts nowhere, and for the outlines both
            masks are empty there.
        rules: of the scores.

    Returns:
        float64 [C] by the name of the metric; of `CURVE`, [C, 256].
    """
    sure, solid = probability >= rules.threshold, truth >= 128
    counted = None if valid is None else valid.expand_as(solid)
    found = {
        k: v.double().numpy() for k, v in binary_scores(sure, solid, counted)._asdict().items()
    }
    found["mae"] = _mean_absolute_error(probability, solid, counted)
    if counted is not None:
        sure, solid = sure & counted, solid & counted
    pairs = list(zip(sure.numpy(), solid.numpy(), strict=True))
    outlines = [surface_scores(*pair, rules.tolerance_px) for pair in pairs]
    found["hd95"] = np.array([scores.hd95 for scores in outlines])
    found["surface_dice"] = np.array([scores.surface_dice for scores in outlines])
    if rules.saliency:
        maps = zip(probability.numpy(), solid.numpy(), strict=True)
        parts = zip(*(saliency_scores(*pair) for pair in maps), strict=True)
        found |= {name: np.stack(part) for name, part in zip(SALIENCY, parts, strict=True)}
    return found


def _mean_absolute_error(probability: Tensor, solid: Tensor, counted: Tensor | None) -> np.ndarray:
    """Mean |probability - truth| of the valid pixels, [C]; 0 where there are none."""
    error = (probability - solid.float()).abs().flatten(1)
    if counted is None:
        return error.double().mean(1).numpy()
    weights = counted.flatten(1)
    return ((error * weights).double().sum(1) / weights.sum(1).clamp(min=1)).numpy()


def own_truth(truth: np.ndarray, ignored: np.ndarray | None) -> tuple[Tensor, Tensor | None]:
    """What `image_scores` takes, of a mask as it is read: uint8 [C, H, W], and bool [H, W]."""
    valid = None if ignored is None else torch.from_numpy(~ignored)[None]
    return torch.from_numpy(np.ascontiguousarray(truth)), valid
