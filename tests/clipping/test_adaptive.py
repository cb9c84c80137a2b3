"""AutoClip and its running quantile; what all clippers whose limit follows the norm agree on."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastclip
from fastclip.clipping.adaptive.quantile import RunningQuantile

pytestmark = pytest.mark.core

CLIPPERS = {
    "autoclip": lambda: fastclip.AutoClip(50),
    "window": lambda: fastclip.AutoClip(50, history=4),
    "zclip": lambda: fastclip.ZClip(warmup=3),
    "percentile": lambda: fastclip.ZClip(warmup=3, mode="percentile"),
}


def parameter(norm: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    p = nn.Parameter(torch.ones(4, dtype=dtype))
    p.grad = torch.full((4,), norm / 2, dtype=dtype)
    return p


def left(p: nn.Parameter) -> float:
    return p.grad.double().norm().item()


@given(
    st.lists(st.one_of(st.floats(0, 10), st.integers(0, 3).map(float)), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([None, 1, 2, 3, 10]),
)
@settings(max_examples=150, deadline=None)
def test_the_running_quantile_is_torch_s(numbers, q, window):
    quantile = RunningQuantile(q, window)
    for i, x in enumerate(numbers):
        quantile.add(x)
        counted = numbers[: i + 1] if window is None else numbers[: i + 1][-window:]
        expected = torch.quantile(torch.tensor(counted, dtype=torch.float64), q).item()
        assert quantile.value() == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert sorted(quantile.numbers()) == sorted(counted)


def test_norms_that_fall_leave_no_old_ones_in_memory():
    quantile = RunningQuantile(0.1, 10)
    for i in range(5000):
        quantile.add(1.0 / (1 + i))
    assert len(quantile._low) + len(quantile._high) + len(quantile._passed) < 200


def test_a_step_costs_the_same_after_many():
    quantile = RunningQuantile(0.1)
    generator = random.Random(0)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(2000):
            quantile.add(generator.random())
            quantile.value()
        return time.perf_counter() - start

    early = min(seconds() for _ in range(3))
    quantile.extend(generator.random() for _ in range(200_000))
    assert min(seconds() for _ in range(3)) < 5 * early


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e-4, 1.0, 1e20])
def test_the_largest_norm_so_far_is_never_clipped_at_percentile_100(size):
    clipper = fastclip.AutoClip(100)
    for factor in (1.0, 2.0, 4.0):
        p = parameter(factor * size)
        before = p.grad.clone()
        clipper.clip_([p])
        assert torch.equal(p.grad, before)


@pytest.mark.parametrize("size", [1e-30, 1e-7, 1.0, 1e20])
def test_a_norm_is_scaled_to_the_limit_itself(size):
    clipper = fastclip.AutoClip(50)
    clipper.clip_(parameter(size))
    p = parameter(3 * size)
    clipper.clip_(p)
    assert left(p) == pytest.approx(2 * size, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.float64])
def test_the_unrounded_norm_counts_whatever_the_dtype(dtype):
    clipper = fastclip.AutoClip(50)
    clipper.clip_(parameter(100.0, dtype))
    p = parameter(301.0, dtype)
    size = p.grad.abs().double().norm().item()
    clipper.clip_(p)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-2
    assert p.grad.abs().double().norm().item() == pytest.approx((100 + size) / 2, rel=tolerance)


def test_a_float16_norm_past_its_range_is_clipped_to_a_finite_limit():
    clipper = fastclip.AutoClip(50)
    clipper.clip_(parameter(1000.0, torch.float16))
    p = parameter(80_000.0, torch.float16)
    assert clipper.clip_(p).isinf()
    assert left(p) == pytest.approx(40_500, rel=1e-3)


@pytest.mark.parametrize("name", CLIPPERS)
@pytest.mark.parametrize("nothing", ["none", "zeros", "empty list"])
def test_steps_without_gradients_count_for_nothing(name, nothing):
    clipper, other = CLIPPERS[name](), CLIPPERS[name]()
    for step in range(12):
        p = parameter(0.0)
        p.grad = None if nothing == "none" else p.grad
        clipper.clip_([] if nothing == "empty list" else [p])
        norm = 1 + 0.1 * (step % 3)
        one, two = parameter(norm), parameter(norm)
        clipper.clip_([one])
        other.clip_([two])
        assert torch.equal(one.grad, two.grad)
    assert left(one) > 0.5


@pytest.mark.parametrize("name", CLIPPERS)
def test_one_tensor_is_one_parameter(name):
    one, many = CLIPPERS[name](), CLIPPERS[name]()
    for size in (1.0, 1.1, 0.9, 1.0, 100.0):
        p, q = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
        p.grad, q.grad = torch.full((3, 4), size), torch.full((3, 4), size)
        assert one.clip_(p).item() == many.clip_(iter([q])).item()
        assert torch.equal(p.grad, q.grad)
    assert left(p) < 100


def test_agc_takes_one_tensor_too():
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.ones(3, 4)
    fastclip.AGC(0.01).clip_(p)
    torch.testing.assert_close(p.grad, torch.full((3, 4), 0.01))


@pytest.mark.parametrize("name", CLIPPERS)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_leaves_the_statistics_alone(name, bad):
    clipper, other = CLIPPERS[name](), CLIPPERS[name]()
    for step in range(10):
        p = parameter(1.0)
        p.grad[0] = bad
        clipper.clip_([p])
        norm = 1 + 0.1 * (step % 3)
        one, two = parameter(norm), parameter(norm)
        clipper.clip_([one])
        other.clip_([two])
        assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize(
    ("history", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)]
)
def test_a_history_that_keeps_nothing_is_refused(history, error):
    with pytest.raises(error, match=rf"history must be .* got {history!r}"):
        fastclip.AutoClip(10, history=history)


def test_the_state_of_another_clipper_is_refused():
    with pytest.raises(ValueError, match="no state of AutoClip: it has no norms, only first, mean"):
        fastclip.AutoClip().load_state_dict(fastclip.ZClip().state_dict())
    with pytest.raises(ValueError, match="no state of ZClip: it has no first, mean, variance"):
        fastclip.ZClip().load_state_dict(fastclip.AutoClip().state_dict())


@pytest.mark.parametrize("history", [None, 5])
def test_a_restored_clipper_goes_on_as_the_first(history):
    first = fastclip.AutoClip(30, history)
    for size in (3.0, 1.0, 2.0, 5.0, 4.0, 0.5, 2.5):
        first.clip_(parameter(size))
    second = fastclip.AutoClip(30, history)
    second.load_state_dict(first.state_dict())
    for size in (6.0, 1.5, 0.1, 9.0, 3.3, 2.0):
        one, two = parameter(size), parameter(size)
        first.clip_(one)
        second.clip_(two)
        assert torch.equal(one.grad, two.grad)
