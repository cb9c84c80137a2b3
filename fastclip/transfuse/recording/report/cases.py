"""The images that a report shows: where the network does worst, as it mostly does, and best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

EACH = 4  # images of each kind


class Chosen(NamedTuple):
    """Rows of the images, each in one list at most."""

    worst: list[int]
    median: list[int]
    best: list[int]


def choose(scores: Sequence[float], each: int = EACH) -> Chosen:
    """Pick the images of the lowest, middle and highest scores.

    Args:
        scores: one for each image; NaN, a prediction that cannot be scored, is the worst.
        each: at most so many of a kind; fewer where there are fewer than three times as many.

    Returns:
        The worst first, the middle in rising order, the best first.
    """
    order = sorted(range(len(scores)), key=lambda row: _rank(scores[row]))
    count = min(each, max(1, len(order) // 3))
    if len(order) == 1:
        return Chosen([], order, [])
    worst, inner, best = order[:count], order[count:-count], order[-count:]
    start = max(0, (len(inner) - count) // 2)
    return Chosen(worst, inner[start : start + count], best[::-1])


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score
