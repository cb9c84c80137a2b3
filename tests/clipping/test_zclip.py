"""ZClip against its published formulas, written out again here, over 200 steps for every option."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core


class Published:
    """arXiv 2504.02507, section 3, and the options of its published code: norms in, norms out."""

    def __init__(self, mode, option, factor, cap, skip, threshold=2.5, alpha=0.97, warmup=25):
        self.mode, self.option, self.factor, self.cap, self.skip = mode, option, factor, cap, skip
        self.threshold, self.alpha, self.warmup = threshold, alpha, warmup
        self.seen, self.mean, self.variance = [], None, None

    def __call__(self, g: float) -> tuple[float, bool]:
        """(the norm after clipping, whether it was a spike)."""
        cap = math.inf if self.cap is None else self.cap
        if self.mean is None:
            self.seen.append(g)
            if len(self.seen) == self.warmup:
                values = torch.tensor(self.seen, dtype=torch.float64)
                self.mean, self.variance = values.mean().item(), values.var(correction=0).item()
            return min(g, cap), False
        sigma = self.variance**0.5
        z = (g - self.mean) / (sigma + 1e-6)
        clipped = None
        if self.mode == "percentile":
            if g > self.mean + self.threshold * sigma:
                clipped = self.mean + self.threshold * sigma
        elif z > self.threshold:
            reciprocal = self.mean + sigma * self.threshold**2 / z
            clipped = self.mean if self.option == "mean" else self.factor * reciprocal
        if clipped is None or not self.skip:
            enters = g if clipped is None else clipped
            self.mean = self.alpha * self.mean + (1 - self.alpha) * enters
            deviation = enters - self.mean
            self.variance = self.alpha * self.variance + (1 - self.alpha) * deviation**2
        return min(g if clipped is None else clipped, cap), clipped is not None


def norms(steps: int) -> list[float]:
    """A run that settles and drifts, with a spike now and then."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, generator=generator, dtype=torch.float64).tolist()
    found = []
    for step, x in enumerate(noise):
        spike = 1 + 9 * (step % 23 == 7) + 80 * (step % 71 == 70)
        found.append(spike * math.exp(0.15 * x) * (1 + math.exp(-step / 40)))
    return found


@pytest.mark.parametrize("factor", [1.0, 0.6])
@pytest.mark.parametrize(
    ("mode", "option", "cap", "skip"),
    list(
        itertools.product(
            ("zscore", "percentile"), ("adaptive_scaling", "mean"), (None, 1.3), (False, True)
        )
    ),
)
def test_200_steps_are_as_published(mode, option, cap, skip, factor):
    clipper = fastclip.ZClip(
        mode=mode,
        clip_option=option,
        clip_factor=factor,
        max_grad_norm=cap,
        skip_update_on_spike=skip,
    )
    published = Published(mode, option, factor, cap, skip)
    spikes = 0
    for norm in norms(200):
        p = nn.Parameter(torch.ones(4, dtype=torch.float64))
        p.grad = torch.full((4,), norm / 2, dtype=torch.float64)
        assert clipper.clip_([p]).item() == pytest.approx(norm, rel=1e-12)
        expected, is_spike = published(norm)
        assert p.grad.norm().item() == pytest.approx(expected, rel=1e-9)
        assert clipper.spiked == is_spike
        spikes += is_spike
    assert spikes >= 5


def clipped_after_warmup(norm: float, **options) -> float:
    """The mean and deviation of the norms before it are 2 and 1."""
    clipper = fastclip.ZClip(warmup=2, eps=0.0, **options)
    for size in (1.0, 3.0, norm):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        p.grad = torch.full((1,), size, dtype=torch.float64)
        clipper.clip_([p])
    return p.grad.item()


def test_worked_by_hand():
    assert clipped_after_warmup(12.0, threshold=2.0) == pytest.approx(2 + 4 / 10)
    assert clipped_after_warmup(12.0, threshold=2.0, clip_option="reciprocal") == pytest.approx(2.4)
    assert clipped_after_warmup(12.0, threshold=2.0, clip_factor=0.5) == pytest.approx(1.2)
    assert clipped_after_warmup(12.0, threshold=2.0, clip_option="mean") == pytest.approx(2.0)
    assert clipped_after_warmup(12.0, threshold=2.0, mode="percentile") == pytest.approx(4.0)
    assert clipped_after_warmup(3.9, threshold=2.0) == 3.9
    assert clipped_after_warmup(3.9, threshold=2.0, max_grad_norm=3.5) == pytest.approx(3.5)


def test_spiked_is_of_the_last_call():
    clipper = fastclip.ZClip(warmup=2)
    p = nn.Parameter(torch.ones(1))
    for size, spiked in [(1.0, False), (1.1, False), (50.0, True), (math.nan, True), (1.0, False)]:
        p.grad = torch.tensor([size])
        clipper.clip_([p])
        assert clipper.spiked == spiked
    p.grad = torch.tensor([math.inf])
    clipper.clip_([p])
    p.grad = None
    clipper.clip_([p])
    assert not clipper.spiked


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"threshold": math.nan},
        {"alpha": 1.0},
        {"alpha": math.nan},
        {"warmup": 1},
        {"warmup": math.nan},
        {"warmup": 2.5},
        {"mode": "zscores"},
        {"clip_option": "max"},
        {"clip_factor": 0.0},
        {"clip_factor": math.nan},
        {"max_grad_norm": -1.0},
        {"max_grad_norm": math.nan},
        {"eps": -1e-6},
        {"eps": math.nan},
    ],
    ids=str,
)
def test_arguments_are_named_where_they_are_wrong(wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises((ValueError, TypeError), match=f"{name} must be .*got {value!r}"):
        fastclip.ZClip(**wrong)
