"""Tracers, modes and profilers see a clip: as a registered op, as torch's functions, as a range."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastclip
from fastclip.ops import observed


def clip(grad):
    fastclip.clip_grad_norm_([SimpleNamespace(grad=grad)], 1.0)
    return grad * 1


def clip_by_known_norm(grad):
    norm = fastclip.get_total_norm([grad])
    fastclip.clip_grads_with_norm_([SimpleNamespace(grad=grad)], 1.0, norm)
    return grad * 1


def clip_value(grad):
    fastclip.clip_grad_value_([SimpleNamespace(grad=grad)], 0.5)
    return grad * 1


def clip_tensors(grad):
    fastclip.clip_tensors_([grad], 1.0)
    return grad * 1


def clip_units(grad):
    weight = torch.nn.Parameter(torch.ones(4))
    weight.grad = grad
    fastclip.AGC(0.5).clip_([weight])
    return grad * 1


# and the norm of [100] * 4 after each
CALLS = {
    "clip_grad_norm_": (clip, 1.0),
    "clip_grads_with_norm_": (clip_by_known_norm, 1.0),
    "clip_grad_value_": (clip_value, 1.0),
    "clip_tensors_": (clip_tensors, 1.0),
    "AGC": (clip_units, 1.0),
}
GRAD = torch.full((4,), 100.0)


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", CALLS)
def test_make_fx_keeps_the_clip(name, tracing_mode):
    function, expected = CALLS[name]
    traced = make_fx(function, tracing_mode=tracing_mode)(torch.randn(4))
    assert traced(GRAD.clone()).norm().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("name", CALLS)
def test_jit_trace_keeps_the_clip(name):
    function, expected = CALLS[name]
    traced = torch.jit.trace(function, torch.randn(4), check_trace=False)
    assert traced(GRAD.clone()).norm().item() == pytest.approx(expected, rel=1e-5)


def norms(grad):
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = grad
    report = fastclip.grad_norms([("g", parameter)])
    return report.norms * 1


def test_make_fx_of_norms_computes_them():
    traced = make_fx(norms)(torch.randn(4))
    assert traced(GRAD.clone()).tolist() == [200.0]
    total = make_fx(lambda g: fastclip.get_total_norm([g]) * 1)(torch.randn(4))
    assert total(GRAD.clone()).item() == 200.0


class Dispatches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Dispatches, Functions])
@pytest.mark.parametrize("name", CALLS)
def test_a_mode_sees_the_clip(name, mode):
    function, expected = CALLS[name]
    grad = GRAD.clone()
    with mode() as seen:
        function(grad)
    writes = ("clip", "foreach_mul_", "mul_", "clamp_max_")
    assert any(any(word in found for word in writes) for found in seen.names), seen.names
    assert grad.norm().item() == pytest.approx(expected, rel=1e-5)


def test_modes_in_each_other_and_a_flop_counter():
    grad = GRAD.clone()
    with Dispatches() as outer, Dispatches() as inner, FlopCounterMode(display=False):
        clip(grad)
    assert "fastclip.clip_grads_.default" in outer.names
    assert "fastclip.clip_grads_.default" in inner.names
    assert grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_a_default_device_is_no_observer():
    assert not observed.is_observed()
    with torch.device("cpu"):
        assert not observed.is_observed()
        with Functions():
            assert observed.is_observed()
        assert clip(GRAD.clone()).norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("error", [False, True])
def test_a_norm_that_is_not_finite_raises_under_a_mode_too(error):
    grad = torch.tensor([1.0, math.inf])
    with Dispatches():
        if error:
            with pytest.raises(RuntimeError, match="non-finite"):
                fastclip.clip_tensors_([grad], 1.0, error_if_nonfinite=True)
            assert grad.tolist() == [1.0, math.inf]
        else:
            assert fastclip.clip_tensors_([grad], 1.0).item() == math.inf


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "clip_tensors_"])
def test_a_profiler_shows_one_range_a_call(name):
    function, _ = CALLS[name]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(GRAD.clone())
        function(GRAD.clone())
    ranges = [e for e in profile.events() if e.name.startswith("fastclip::")]
    assert [e.name for e in ranges] == [f"fastclip::{name}"] * 2
