"""The words of `fastclip bench` follow from its figures."""

from __future__ import annotations

import time

import pytest

from fastclip.benchmark import verdict
from fastclip.benchmark.operations import Operation
from fastclip.benchmark.step import ClipTimes, Step
from fastclip.benchmark.timing import Time, interleaved


def about(ms: float, spread: float = 0.01) -> Time:
    return Time(ms, ms * (1 - spread), ms * (1 + spread), 9)


def step(torch_ms: float, ours_ms: float, *, spread: float = 0.01, error: float = 1e-7) -> Step:
    """Forward and backward take 90 ms, the optimizer 10."""
    clips = {"torch": about(torch_ms, spread), "fastclip": about(ours_ms, spread)}
    both = {name: about(10 + time.median_ms, spread) for name, time in clips.items()}
    modes = {mode: ClipTimes(clips, both) for mode in ("not clipping", "clipping")}
    errors = {"torch": error, "fastclip": 1e-8}
    return Step(about(90), about(10), modes, 5, 1000, 4000, errors)


def test_the_share_of_a_step_is_that_of_each_ones_own_step():
    words = verdict.of_step(step(1.0, 0.2))
    assert words[0] == (
        "With nothing to clip, your clip takes 0.99 % of a step; with fastclip 0.20 %."
    )
    assert words[1].startswith("With every step clipped, your clip takes 0.99 % of a step")


@pytest.mark.parametrize(
    ("torch_ms", "ours_ms", "words"),
    [
        (1.0, 0.2, "A step gets 0.79 % shorter: not worth changing for the speed alone."),
        (3.0, 0.5, "A step gets up to 2.4 % shorter: a small gain for one changed import."),
        (25.0, 5.0, "A step gets up to 16 % shorter: worth changing the import."),
        (1.0, 2.0, "fastclip is slower here in at least one case (a step takes 0.99 % more): "),
    ],
)
def test_what_a_change_saves(torch_ms, ours_ms, words):
    assert words in " ".join(verdict.of_step(step(torch_ms, ours_ms)))


def test_a_difference_within_the_noise_is_none():
    words = " ".join(verdict.of_step(step(10.0, 8.0, spread=0.3)))
    assert "no further apart than single measurements here" in words
    assert "worth" not in words


@pytest.mark.parametrize(("error", "felt"), [(1e-3, True), (1e-5, False)])
def test_an_error_of_the_norm_that_moves_the_limit_is_told(error, felt):
    words = verdict.of_step(step(1.0, 0.2, error=error))[-1]
    assert ("another limit" in words) == felt
    assert ("no difference" in words) != felt


@pytest.mark.parametrize(
    ("in_step_ms", "words"), [(9.0, "faster again"), (14.0, "slower than clip and step()")]
)
def test_clipping_in_the_step_is_recommended_where_it_pays(in_step_ms, words):
    found = step(1.0, 0.2)
    found.modes["clipping"].with_optimizer["fastclip, in the step"] = about(in_step_ms)
    assert words in " ".join(verdict.of_step(found))


def test_a_single_call_that_is_slower_says_so():
    times = {"torch": about(1.0), "fastclip": about(2.0)}
    words = verdict.of_operations([Operation("clip x", times, {}, 0)])
    assert words == ["clip x: fastclip is 2.0x slower."]


@pytest.mark.parametrize(
    ("share", "text"), [(0.123, "12 %"), (0.0187, "1.9 %"), (0.0004, "0.04 %"), (-0.02, "-2.0 %")]
)
def test_percent(share, text):
    assert verdict.percent(share) == text


def test_quartiles_of_measurements():
    assert Time.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Time(3.0, 2.0, 4.0, 5)
    assert Time.of([7.0]) == Time(7.0, 7.0, 7.0, 1)


def test_variants_take_turns_and_warm_up_untimed():
    calls = []
    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = interleaved(variants, 20, warmup=2)
    assert {name: len(values) for name, values in times.items()} == {"a": 20, "b": 20}
    rounds = ["".join(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert len(rounds) == 22
    assert set(rounds) == {"ab", "ba"}

    calls.clear()
    times = interleaved(variants, 3, warmup=0, in_a_loop=4)
    assert len(times["a"]) == 12
    assert "".join(calls).replace("aaaaa", "A").replace("bbbbb", "B").lower() in {
        first + second + third
        for first in ("ab", "ba")
        for second in ("ab", "ba")
        for third in ("ab", "ba")
    }


def test_rounds_end_with_the_time_but_five_are_done():
    slow = {"a": lambda: time.sleep(0.02)}
    assert len(interleaved(slow, 1000, warmup=0, seconds=0.3)["a"]) < 20
    assert len(interleaved(slow, 1000, warmup=2, seconds=0)["a"]) == 5
    assert len(interleaved(slow, 3, seconds=0)["a"]) == 3
