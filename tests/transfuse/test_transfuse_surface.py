"""HD95 and surface Dice: by hand, by comparing every pair of pixels, and of empty masks."""

from __future__ import annotations

import math

import needs_train  # noqa: F401
import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs fastclip-torch[train]")

from fastclip.transfuse.measuring.surface import outline, surface_scores


def rectangle(top: int, left: int, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_an_outline_by_hand() -> None:
    square = rectangle(1, 1, 3, 3, (5, 6))
    assert len(outline(square)) == 8  # all but the middle
    assert [2, 2] not in outline(square).tolist()
    assert len(outline(np.ones((4, 3), bool))) == 10  # beyond the image is outside: not the two
    assert outline(np.zeros((4, 3), bool)).shape == (0, 2)
    assert outline(rectangle(2, 0, 1, 7, (5, 7))).tolist() == [[2, c] for c in range(7)]


def test_a_shift_by_hand() -> None:
    """A column of 20 pixels moved 3 to the right, then 5 of them cut off: the farthest is 5.83."""
    one = rectangle(0, 2, 20, 1, (20, 31))
    shifted = surface_scores(rectangle(0, 5, 20, 1, (20, 31)), one, 2.0)
    assert shifted == (3.0, 0.0)
    assert surface_scores(rectangle(0, 5, 20, 1, (20, 31)), one, 3.0).surface_dice == 1.0
    cut = rectangle(0, 5, 15, 1, (20, 31))
    # From the cut one all are 3 away; from the other 15 are, then hypot(3, 1) to hypot(3, 5).
    there = [3.0] * 15 + [math.hypot(3, k) for k in range(1, 6)]
    found = surface_scores(cut, one, 3.0)
    assert found.hd95 == pytest.approx(np.percentile(there, 95))
    assert found.surface_dice == pytest.approx((15 + 15) / 35)
    assert surface_scores(one, cut, 3.0) == found


@pytest.mark.parametrize("size", [(9, 30), (30, 9), (17, 17)])
def test_every_pair_of_pixels_compared(size: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(size))
    for _ in range(5):
        one, two = random.random((2, *size)) > 0.6
        a, b = outline(one), outline(two)
        apart = np.linalg.norm(a[:, None] - b[None], axis=2)
        there, back = apart.min(1), apart.min(0)
        near = (there <= 1).sum() + (back <= 1).sum()
        found = surface_scores(one, two, 1.0)
        assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
        assert found.surface_dice == pytest.approx(near / (len(a) + len(b)))


def test_empty_masks() -> None:
    nothing, something = np.zeros((30, 40), bool), rectangle(2, 2, 4, 4, (30, 40))
    assert surface_scores(nothing, nothing, 2.0) == (0.0, 1.0)
    assert surface_scores(nothing, something, 2.0) == (50.0, 0.0)  # the diagonal
    assert surface_scores(something, nothing, 2.0) == (50.0, 0.0)
    assert surface_scores(something, something, 0.0) == (0.0, 1.0)


def test_a_photograph_takes_no_map_of_distances() -> None:
    """12 megapixels: outlines of some thousand pixels are compared, not 12 million."""
    one = rectangle(100, 100, 2500, 3500, (3000, 4000))
    two = rectangle(140, 100, 2460, 3500, (3000, 4000))
    found = surface_scores(one, two, 10.0)
    assert 30 < found.hd95 <= 40
    assert 0.6 < found.surface_dice < 0.8
