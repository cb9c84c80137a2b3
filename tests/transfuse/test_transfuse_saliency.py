"""Weighted F, S and E are PySODMetrics' own, by the protocol of papers on polyps."""

from __future__ import annotations

import builtins
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest

from fastclip.transfuse.measuring import saliency


def blob() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:40, :60]
    truth = (y - 20) ** 2 + (x - 25) ** 2 < 100
    probability = 1 / (1 + np.exp((np.hypot(y - 22, x - 27) - 10) / 2))
    return probability.astype(np.float32), truth


def test_scores_of_a_good_and_a_bad_map() -> None:
    pytest.importorskip("py_sod_metrics", reason="needs fastclip-torch[polyp]")
    probability, truth = blob()
    good, bad = (saliency.saliency_scores(p, truth) for p in (probability, 1 - probability))
    perfect = saliency.saliency_scores(truth.astype(np.float32), truth)
    assert perfect.weighted_f == pytest.approx(1, abs=1e-6)
    assert perfect.s_measure == pytest.approx(1, abs=1e-3)
    assert good.e_measure.shape == (256,)
    assert perfect.e_measure[1:].mean() == pytest.approx(1, abs=1e-3)  # all is object from 0
    for name in ("weighted_f", "s_measure"):
        assert getattr(bad, name) < 0.5 < getattr(good, name) < 1
    assert bad.e_measure.mean() < 0.6 < good.e_measure.mean()


def test_a_map_is_stretched_and_rounded_as_published() -> None:
    pytest.importorskip("py_sod_metrics", reason="needs fastclip-torch[polyp]")
    probability, truth = blob()
    full = saliency.saliency_scores(probability, truth)
    half = saliency.saliency_scores(np.rint(probability * 255) / 255 * 0.2 + 0.4, truth)
    assert half.s_measure == pytest.approx(full.s_measure, abs=0.01)


def test_without_an_object_the_weighted_f_is_0() -> None:
    pytest.importorskip("py_sod_metrics", reason="needs fastclip-torch[polyp]")
    nothing = np.zeros((8, 8), bool)
    found = saliency.saliency_scores(np.zeros((8, 8), np.float32), nothing)
    assert found.weighted_f == 0
    assert found.s_measure == 1


def test_without_the_library_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "py_sod_metrics":
            raise ImportError(name)
        return there(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"--saliency needs PySODMetrics: .*\[polyp\]"):
        saliency.require_pysodmetrics()
