"""float8 gradients: refused by name, and nothing is written by then."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fastclip
from fastclip import native

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu)


def parameters(dtype):
    """Two that can be clipped, and between them one of this dtype."""
    found = [nn.Parameter(torch.ones(3, 4).to(d)) for d in (torch.float32, dtype, torch.float32)]
    for p in found:
        p.grad = torch.full((3, 4), 4.0).to(p.dtype)
    return found


def grads(given):
    return [p.grad for p in given]


def unscale(given):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    fastclip.unscale_and_clip_grad_norm_(scaler, torch.optim.SGD(given, lr=0.1), 0.1)


CALLS = {
    "clip_grad_norm_": lambda given: fastclip.clip_grad_norm_(given, 0.1),
    "clip_grad_norm_ of pairs": lambda given: fastclip.clip_grad_norm_(
        [(f"w{i}", p) for i, p in enumerate(given)], 0.1
    ),
    "get_total_norm": lambda given: fastclip.get_total_norm(grads(given), 3.0),
    "clip_grads_with_norm_": lambda given: fastclip.clip_grads_with_norm_(
        given, 0.1, torch.tensor(2.0)
    ),
    "clip_tensors_": lambda given: fastclip.clip_tensors_(grads(given), 0.1),
    "clip_grad_value_": lambda given: fastclip.clip_grad_value_(given, 0.1),
    "unscale_and_clip_grad_norm_": unscale,
    "AGC": lambda given: fastclip.AGC(0.01).clip_(given),
}


def check(call, given, place="gradient 1"):
    before = [p.grad.float() for p in given]
    message = f"^{place} is {re.escape(str(given[1].dtype))}, of shape .3, 4.: .*Clip before"
    with pytest.raises(NotImplementedError, match=message):
        call(given)
    for p, grad in zip(given, before, strict=True):
        assert torch.equal(p.grad.float(), grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_a_float8_gradient_is_refused_by_name_and_nothing_is_written(name, dtype):
    check(CALLS[name], parameters(dtype))


@pytest.mark.parametrize("name", CALLS)
def test_without_the_native_core_too(name, monkeypatch):
    monkeypatch.setattr(native, "core", None)
    check(CALLS[name], parameters(torch.float8_e4m3fn))


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "AGC"])
def test_where_operations_are_counted_too(name):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        check(CALLS[name], parameters(torch.float8_e5m2))


def test_each_group_is_refused_before_any_is_clipped():
    first, second, third = parameters(torch.float8_e4m3fn)
    groups = [{"params": [third]}, {"params": [first, second]}]
    check(lambda _: fastclip.clip_groups_(groups, 0.1), [first, second, third])


def test_a_float8_weight_of_a_wider_gradient_is_refused():
    given = parameters(torch.float32)
    packed = torch.ones(3, 4).to(torch.float8_e4m3fn)
    packed.grad_dtype = torch.float32
    packed.grad = torch.ones(3, 4)
    given[1] = packed
    check(CALLS["AGC"], given, "the weight of gradient 1")


def test_the_way_out_that_the_error_names():
    packed, scale = parameters(torch.float8_e4m3fn)[1].grad, torch.tensor(0.5)
    whole = packed.float() * scale
    assert fastclip.clip_tensors_([whole], 0.1).item() == pytest.approx(2.0 * 12**0.5)
    assert whole.norm().item() == pytest.approx(0.1, rel=1e-5)


def test_reports_list_it():
    names = ("a", "b", "c")
    report = fastclip.grad_norms(zip(names, parameters(torch.float8_e5m2), strict=True))
    assert report.names == ("a", "c")
    assert report.skipped == ("b",)
