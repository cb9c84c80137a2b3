"""Distances between the outlines of two masks: HD95 and the normalised surface Dice.

A search tree over the outlines' pixels: torchmetrics' distance transform (1.9) is wrong on images
that are not square and takes memory with the square of the pixels, and scipy's visits every pixel
of a photograph for outlines of a few thousand.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree


class SurfaceScores(NamedTuple):
    """Of one pair of masks."""

    hd95: float  # pixels
    surface_dice: float  # 0..1


def outline(mask: np.ndarray) -> np.ndarray:
    """Rows and columns [K, 2] of a mask's rim: pixels with one of four neighbours outside it.

    What lies beyond the image is outside.
    """
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = (
        mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    )
    return np.argwhere(mask & ~inner)


def surface_scores(prediction: np.ndarray, truth: np.ndarray, tolerance_px: float) -> SurfaceScores:
    """Compare the outlines of two masks.

    HD95 is the larger of the two 95th percentiles of distances from the pixels of one outline to
    the other outline. The surface Dice is the share of both outlines' pixels that lie within the
    tolerance of the other.

    Args:
        prediction: bool [H, W].
        truth: bool [H, W].
        tolerance_px: distance that still counts as the same place, in pixels.

    Returns:
        0 px and 1 where both masks are empty. Where one is, the image's diagonal, which no
        distance exceeds, and 0: a model that predicts nothing shall not gain by it.

    Source: Maier-Hein et al., "Metrics reloaded", Nature Methods 2024; Nikolov et al.,
    arXiv 1809.04430 (counted in pixels of the outlines, as MONAI does).
    """
    rims = outline(prediction), outline(truth)
    if not len(rims[0]) and not len(rims[1]):
        return SurfaceScores(0.0, 1.0)
    if not len(rims[0]) or not len(rims[1]):
        return SurfaceScores(math.hypot(*truth.shape), 0.0)
    there, _ = KDTree(rims[1]).query(rims[0])
    back, _ = KDTree(rims[0]).query(rims[1])
    near = np.count_nonzero(there <= tolerance_px) + np.count_nonzero(back <= tolerance_px)
    return SurfaceScores(
        float(max(np.percentile(there, 95), np.percentile(back, 95))),
        near / (len(there) + len(back)),
    )
