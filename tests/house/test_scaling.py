"""The model of docs/scaling.md, worked by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("fastclip.benchmark")

import scaling


def test_an_all_reduce_within_a_node():
    assert scaling.all_reduce_us(8, 0) == pytest.approx(6.8 + 2 * 3 * 0.6)


def test_an_all_reduce_over_nodes():
    assert scaling.all_reduce_us(512, 0) == pytest.approx(6.8 + 2 * 3 * 0.6 + 2 * 6 * 5.0)
    assert scaling.all_reduce_us(16_384, 0) == pytest.approx(6.8 + 2 * 3 * 0.6 + 2 * 11 * 5.0)


def test_a_clip():
    dense = scaling.MODELS[0]
    of = scaling.cost(dense, 8, (1.0, 10.0))
    assert of.read == pytest.approx(6.74e9 * 4 / 8 / (0.9 * 3.35e6))
    assert of.host_fastclip == pytest.approx(291)
    assert of.host_torch == pytest.approx(2910)
    assert scaling.steps(8) == 6
