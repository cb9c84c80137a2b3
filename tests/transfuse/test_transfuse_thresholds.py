"""Dice at every threshold in one pass equals Dice at each."""

from __future__ import annotations

import needs_train  # noqa: F401
import numpy as np
import torch

from fastclip.transfuse.measuring.metrics import binary_scores
from fastclip.transfuse.measuring.thresholds import GRID, best_threshold, dice_by_threshold


def test_every_threshold_is_measured_as_alone() -> None:
    random = np.random.default_rng(0)
    probability = random.random((20, 30)).astype(np.float32)
    probability[0, :10] = np.float32(0.3)  # exactly a threshold: belongs to the mask
    truth = random.random((20, 30)) > 0.6
    valid = random.random((20, 30)) > 0.2
    for counted in (None, valid):
        found = dice_by_threshold(probability, truth, counted)
        for threshold, dice in zip(GRID, found, strict=True):
            sure = torch.from_numpy(probability)[None] >= float(threshold)
            mask = None if counted is None else torch.from_numpy(counted)[None]
            scores = binary_scores(sure, torch.from_numpy(truth)[None], mask)
            assert abs(float(scores.dice[0]) - dice) < 1e-6


def test_empty_masks() -> None:
    nothing = np.zeros((4, 4), bool)
    found = dice_by_threshold(np.full((4, 4), 0.5, np.float32), nothing)
    assert found.tolist() == [0.0] * 50 + [1.0] * 49  # 0.50 still predicts, 0.51 does not


def test_of_equal_thresholds_the_nearest_to_a_half_is_taken() -> None:
    truth = np.array([[True, False]])
    curve = dice_by_threshold(np.array([[0.9, 0.2]], np.float32), truth)
    assert best_threshold(curve[None]) == (0.5, 1.0)
    low = dice_by_threshold(np.array([[0.31, 0.2]], np.float32), truth)
    assert best_threshold(np.stack([curve, low])) == (0.31, 1.0)
