"""Scores by hand and against torchmetrics; the learning-rate schedule."""

from __future__ import annotations

import needs_train  # noqa: F401
import pytest
import torch

from fastclip.transfuse.measuring.metrics import binary_scores
from fastclip.transfuse.training.schedule import Budget


def test_scores_by_hand() -> None:
    truth = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    guess = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    scores = binary_scores(guess, truth)
    assert scores.dice.tolist() == [0.5, 1.0, 0.0, 0.0]  # two empty masks agree: 1, not 2
    assert scores.iou.tolist() == [pytest.approx(1 / 3), 1.0, 0.0, 0.0]
    assert scores.accuracy.tolist() == [0.5, 1.0, 0.75, 0.5]
    assert scores.precision.tolist() == [0.5, 1.0, 0.0, 0.0]
    assert scores.sensitivity.tolist() == [0.5, 1.0, 0.0, 0.0]
    assert scores.specificity.tolist() == [0.5, 1.0, 0.75, 1.0]


def test_where_no_background_is_left() -> None:
    full, nothing = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    half = torch.tensor([[True, True, False, False]])
    assert [float(values) for values in binary_scores(full, full)] == [1.0] * 6
    assert float(binary_scores(half, full).specificity) == 0  # background where there is none
    assert float(binary_scores(full, half).specificity) == 0
    assert [float(values) for values in binary_scores(full, nothing)] == [0.0] * 6
    assert [float(values) for values in binary_scores(nothing, full)] == [0.0] * 6


def test_counts_of_a_photograph_are_exact() -> None:
    """float32 holds whole numbers up to 2^24: 16.8 megapixels."""
    guess = torch.ones(1, 2**25, dtype=torch.bool)
    truth = guess.clone()
    truth[0, 0] = False
    scores = binary_scores(guess, truth)
    assert float(scores.precision) == pytest.approx(1 - 2**-25, abs=2**-25)
    assert float(scores.specificity) == 0
    assert float(binary_scores(guess, guess).dice) == 1


def test_scores_agree_with_torchmetrics() -> None:
    functional = pytest.importorskip(
        "torchmetrics.functional", reason="needs fastclip-torch[train]"
    )
    torch.manual_seed(0)
    guess, truth = torch.rand(2, 5, 1, 16, 16) > 0.4
    scores = binary_scores(guess, truth)
    for row in range(5):
        pair = (guess[row].int(), truth[row].int())
        dice = functional.f1_score(*pair, task="binary")
        iou = functional.jaccard_index(*pair, task="binary")
        accuracy = functional.accuracy(*pair, task="binary")
        precision = functional.precision(*pair, task="binary")
        recall = functional.recall(*pair, task="binary")
        specificity = functional.specificity(*pair, task="binary")
        ours = torch.stack([values[row] for values in scores])
        theirs = torch.stack([dice, iou, accuracy, precision, recall, specificity])
        assert torch.allclose(ours, theirs)


def test_scores_refuse_other_masks() -> None:
    mask = torch.zeros(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[1, 4\], truth \[1, 3\]"):
        binary_scores(mask, mask[:, :3])
    with pytest.raises(ValueError, match=r"must be bool, got torch.float32"):
        binary_scores(mask.float(), mask)


def test_budget_ends_by_step_or_by_time() -> None:
    budget = Budget(total_steps=10, total_seconds=60)
    assert budget.progress(5, 6) == 0.5
    assert budget.progress(1, 45) == 0.75
    assert not budget.spent(9, 59)
    assert budget.spent(10, 0)
    assert budget.spent(0, 60)
    assert Budget(10).progress(5, 1e9) == 0.5
