"""The probability from which a pixel belongs to the mask: every choice measured in one pass."""

from __future__ import annotations

import numpy as np

GRID = np.arange(1, 100) / 100  # T thresholds, 0.01 to 0.99


def dice_by_threshold(
    probability: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None
) -> np.ndarray:
    """Dice of one map at each threshold of `GRID`; 1 where prediction and truth are empty.

    Args:
        probability: float [H, W].
        truth: bool [H, W].
        valid: bool [H, W]; where it is False a pixel counts nowhere.

    Returns:
        float64 [T].
    """
    if valid is not None:
        probability, truth = probability[valid], truth[valid]
    # How many thresholds a pixel reaches, p >= t as everywhere else.
    reached = np.searchsorted(GRID.astype(probability.dtype), probability.ravel(), side="right")
    bins = len(GRID) + 1
    everywhere = np.bincount(reached, minlength=bins)[::-1].cumsum()[::-1][1:]
    inside = np.bincount(reached[truth.ravel()], minlength=bins)[::-1].cumsum()[::-1][1:]
    total = everywhere + np.count_nonzero(truth)
    return np.where(total > 0, 2 * inside / np.maximum(total, 1), 1.0)


def best_threshold(dice: np.ndarray) -> tuple[float, float]:
    """The threshold of the highest mean Dice, and that Dice; of equal ones the nearest to 0.5.

    Args:
        dice: float [N, T], a row per image (or image and class).
    """
    means = dice.mean(0)
    best = np.flatnonzero(means >= means.max() - 1e-12)
    chosen = int(best[np.abs(GRID[best] - 0.5).argmin()])
    return float(GRID[chosen]), float(means[chosen])
