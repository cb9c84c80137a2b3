"""Intervals and paired differences: against scipy, with groups, and where nothing can be said."""

from __future__ import annotations

import needs_train  # noqa: F401
import numpy as np
import pytest

from fastclip.transfuse.measuring.bootstrap import (
    intervals,
    paired_differences,
    resampled_means,
)


def each(count: int) -> list[str]:
    return [str(row) for row in range(count)]


def test_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs fastclip-torch[train]")
    values = np.random.default_rng(0).beta(8, 2, (60, 2))
    for column, found in zip(values.T, intervals(values, each(60)), strict=True):
        theirs = stats.bootstrap(
            (column,), np.mean, n_resamples=20_000, method="percentile", random_state=1
        )
        assert found.mean == pytest.approx(column.mean())
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
        assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_draws_are_the_same_each_time_and_of_whole_groups() -> None:
    values = np.array([[0.0], [0.0], [1.0], [1.0], [1.0], [1.0]])
    groups = ["a", "a", "b", "b", "b", "b"]
    means = resampled_means(values, groups, rounds=400)
    assert np.array_equal(means, resampled_means(values, groups, rounds=400))
    # Of two groups drawn both may be a, both b, or one of each: then 4 of 6 images are 1.
    assert set(np.round(means[:, 0], 6)) == {0.0, round(4 / 6, 6), 1.0}


def test_images_of_one_patient_widen_an_interval() -> None:
    values = np.repeat(np.random.default_rng(1).random((10, 1)), 8, axis=0)
    (alone,) = intervals(values, each(80))
    (together,) = intervals(values, [str(row // 8) for row in range(80)])
    assert together.mean == alone.mean
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_one_independent_image_has_no_interval() -> None:
    (found,) = intervals(np.array([[0.5], [0.7]]), ["p", "p"])
    assert found.mean == pytest.approx(0.6)
    assert np.isnan([found.low, found.high]).all()
    (change,) = paired_differences(np.ones((1, 1)), np.zeros((1, 1)), ["p"])
    assert change.mean == 1
    assert np.isnan(change.p_value)


def test_a_small_difference_on_every_image_is_seen_when_paired() -> None:
    random = np.random.default_rng(2)
    others = random.uniform(0.3, 0.9, (50, 1))
    ours = others + random.normal(0.02, 0.01, (50, 1))
    (found,) = paired_differences(ours, others, each(50))
    assert found.mean == pytest.approx((ours - others).mean())
    assert 0.01 < found.low < found.high < 0.03
    assert found.p_value < 0.001
    one, two = (intervals(values, each(50))[0] for values in (ours, others))
    assert one.low < two.high  # which the two intervals alone do not show
    (turned,) = paired_differences(others, ours, each(50))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_p_values_of_no_difference_are_even() -> None:
    random = np.random.default_rng(3)
    p_values = [
        paired_differences(*random.random((2, 40, 1)), each(40), seed=k)[0].p_value
        for k in range(100)
    ]
    assert 1 <= sum(p < 0.05 for p in p_values) <= 14
    assert 0.3 < np.mean(p_values) < 0.7


def test_equal_runs_do_not_differ() -> None:
    values = np.random.default_rng(4).random((30, 1))
    (found,) = paired_differences(values, values.copy(), each(30))
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_what_is_made_of_means_is_drawn_with_them() -> None:
    """The highest point of a mean curve is no mean of highest points."""
    curves = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.9]])

    def top(means: np.ndarray) -> np.ndarray:
        return means.max(1, keepdims=True)

    (found,) = intervals(curves, each(3), top)
    assert found.mean == pytest.approx(1.9 / 3)
    assert found.high == pytest.approx(1.0)
    (change,) = paired_differences(curves, curves[:, ::-1].copy(), each(3), top)
    assert change == (0.0, 0.0, 0.0, 1.0)


def test_runs_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(3, 1\) and \(2, 1\)"):
        paired_differences(np.ones((3, 1)), np.ones((2, 1)), each(3))
