"""Weighted F-measure, S-measure and E-measure by PySODMetrics, as papers on polyps report them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class SaliencyScores(NamedTuple):
    """Of one map."""

    weighted_f: float
    s_measure: float
    e_measure: np.ndarray  # [256], at the thresholds 0/255 to 255/255


def require_pysodmetrics() -> None:
    """Raise ValueError with the command that installs PySODMetrics, where it is absent."""
    try:
        import py_sod_metrics  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--saliency needs PySODMetrics: pip install 'fastclip-torch[polyp]'"
        ) from error


def saliency_scores(probability: np.ndarray, truth: np.ndarray) -> SaliencyScores:
    """Measure one map by the published protocol.

    The map is rounded to 256 grays and stretched to its own smallest and largest value, as PraNet
    and its followers store theirs. Where the truth is empty PySODMetrics gives a weighted F of 0,
    an S-measure of 1 minus the mean of the stretched map, and an E-measure that is the share of
    pixels under each threshold.

    Args:
        probability: float [H, W] in 0..1.
        truth: bool [H, W].

    Source: PySODMetrics (Pang et al.); Margolin et al., CVPR 2014; Fan et al., ICCV 2017 and
    IJCAI 2018.
    """
    from py_sod_metrics import Emeasure, Smeasure, WeightedFmeasure

    gray = np.rint(probability.astype(np.float64) * 255).astype(np.uint8)
    mask = truth.astype(np.uint8) * 255
    f, s, e = WeightedFmeasure(), Smeasure(), Emeasure()
    for measure in (f, s, e):
        measure.step(gray, mask)
    return SaliencyScores(
        float(f.get_results()["wfm"]),
        float(s.get_results()["sm"]),
        np.asarray(e.get_results()["em"]["curve"], np.float64)[::-1],  # it begins at 255
    )
