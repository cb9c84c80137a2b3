"""How sure a mean over images is, and a difference of two: bootstrap over independent images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

ROUNDS = 5000
LEVEL = 0.95
CHUNK = 250  # rounds at a time: bounds the memory for large sets

Finish = Callable[[np.ndarray], np.ndarray]


def as_they_are(means: np.ndarray) -> np.ndarray:
    """The means themselves."""
    return means


class Interval(NamedTuple):
    """A mean and its 95 % percentile interval; NaN bounds where there is one independent image."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of one run minus another's, with its interval and p-value."""

    mean: float
    low: float
    high: float
    p_value: float


def resampled_means(
    values: np.ndarray, groups: Sequence[Hashable], rounds: int = ROUNDS, seed: int = 0
) -> np.ndarray:
    """Means of images drawn with replacement, group by group.

    Args:
        values: float [N, K], a row per image.
        groups: N labels; images of one label (slices of a volume, pictures of a patient) are not
            independent, and are drawn together.
        rounds: R, how often a set of as many groups is drawn.
        seed: of the draws; equal seeds draw the same groups.

    Returns:
        float64 [R, K].
    """
    _, labels = np.unique([str(group) for group in groups], return_inverse=True)
    count = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=count).astype(np.float64)
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, labels, values)
    random = np.random.default_rng(seed)
    means = np.empty((rounds, values.shape[1]))
    for first in range(0, rounds, CHUNK):
        part = means[first : first + CHUNK]
        drawn = random.multinomial(count, np.full(count, 1 / count), size=len(part))  # [r, G]
        part[:] = (drawn @ sums) / (drawn @ sizes)[:, None]
    return means


def intervals(
    values: np.ndarray, groups: Sequence[Hashable], finish: Finish = as_they_are, seed: int = 0
) -> list[Interval]:
    """The interval of the mean of each column.

    Args:
        values: float [N, K], a row per image.
        groups: as for `resampled_means`.
        finish: what is made of means [R, K]: statistics [R, M].
        seed: of the draws.

    Returns:
        M intervals.
    """
    observed = finish(values.mean(0, keepdims=True))[0]
    return _bounds(observed, finish(resampled_means(values, groups, seed=seed)), groups)


def paired_differences(
    ours: np.ndarray,
    others: np.ndarray,
    groups: Sequence[Hashable],
    finish: Finish = as_they_are,
    seed: int = 0,
) -> list[Difference]:
    """Compare two runs on the same images: the same images are drawn of both.

    Args:
        ours: float [N, K], a row per image.
        others: the same images in the same order.
        groups: as for `resampled_means`.
        finish: as for `intervals`.
        seed: of the draws.

    Returns:
        The statistics of ours minus those of others, their percentile intervals, and the two-sided
        p-values of no difference: twice the smaller share of resampled differences on either side
        of 0, the observed one counted once more (so it is never 0). 1 where all images score alike.

    Raises:
        ValueError: two shapes.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 15.
    """
    if ours.shape != others.shape:
        raise ValueError(f"paired scores must have one shape, got {ours.shape} and {others.shape}")
    one, two = (finish(values.mean(0, keepdims=True))[0] for values in (ours, others))
    drawn = finish(resampled_means(ours, groups, seed=seed))
    drawn = drawn - finish(resampled_means(others, groups, seed=seed))
    # Rounding in sums of equal scores is no difference.
    drawn = np.where(np.abs(drawn) <= 1e-12 * (np.abs(one) + np.abs(two)), 0.0, drawn)
    sides = np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    p_values = np.minimum(1.0, 2 * (sides + 1) / (len(drawn) + 1))
    if len(set(groups)) < 2:
        p_values[:] = np.nan
    bounds = _bounds(one - two, drawn, groups)
    return [Difference(*part, float(p)) for part, p in zip(bounds, p_values, strict=True)]


def _bounds(
    observed: np.ndarray, resampled: np.ndarray, groups: Sequence[Hashable]
) -> list[Interval]:
    """Percentile intervals of statistics [M] whose resampled values are [R, M]."""
    if len(set(groups)) < 2:
        return [Interval(float(value), np.nan, np.nan) for value in observed]
    tail = (1 - LEVEL) / 2
    rows = zip(observed, *np.quantile(resampled, [tail, 1 - tail], axis=0), strict=True)
    return [Interval(*map(float, row)) for row in rows]
