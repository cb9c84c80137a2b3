"""Errors for norms that are not finite say the names that the caller gave."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core


def model(bad: float = math.nan, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(dtype)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[0].bias.grad = None
    with torch.no_grad():
        net[1].weight.grad[0, 0] = bad
    return net


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("p", [2.0, "inf", 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
@pytest.mark.parametrize("kind", [list, iter, tuple])
def test_pairs_are_clipped_and_named(bad, p, dtype, kind):
    net = model(bad, dtype)
    before = [None if q.grad is None else q.grad.clone() for q in net.parameters()]
    named = r"non-finite.*gradients of 1\.weight \(1 of 3\)"
    with pytest.raises(RuntimeError, match=named):
        fastclip.clip_grad_norm_(kind(net.named_parameters()), 1.0, p, error_if_nonfinite=True)
    for q, grad in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(q.grad, grad, rtol=0, atol=0, equal_nan=True)
    grads = kind([(name, q.grad) for name, q in net.named_parameters() if q.grad is not None])
    with pytest.raises(RuntimeError, match=named):
        fastclip.get_total_norm(grads, p, error_if_nonfinite=True)


def test_pairs_give_what_tensors_give():
    one, two = model(3.0), model(3.0)
    norm = fastclip.clip_grad_norm_(one.named_parameters(), 1.0)
    assert norm == fastclip.clip_grad_norm_(two.parameters(), 1.0)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


def test_a_list_that_is_not_all_pairs_is_refused():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="number 1 is no pair"):
        fastclip.clip_grad_norm_([("weight", p), p], 1.0)


def test_a_norm_past_the_dtype_is_said_to_be_that():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    p.grad = torch.full_like(p, 6e4)
    optimizer = torch.optim.SGD([p], lr=0.1, fused=True)
    with pytest.raises(RuntimeError, match=r"8485\d\.?\d*, past the range of torch\.float16"):
        fastclip.clip_grads_in_step_(optimizer, 1.0, error_if_nonfinite=True)


CLIPS = {
    "clip_grad_value_": lambda given: fastclip.clip_grad_value_(given, 0.5),
    "clip_grads_with_norm_": lambda given: fastclip.clip_grads_with_norm_(
        given, 1.0, torch.tensor(4.0)
    ),
    "AGC": fastclip.AGC().clip_,
    "AutoClip": lambda given: fastclip.AutoClip(percentile=10, history=2).clip_(given),
    "ZClip": lambda given: fastclip.ZClip(max_grad_norm=0.1).clip_(given),
    "distributed": lambda given: fastclip.distributed.clip_grad_norm_(given, 0.1),
}


@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("kind", [list, iter])
def test_whatever_clips_takes_pairs(clips, kind):
    one, two = model(3.0), model(3.0)
    two.load_state_dict(one.state_dict())
    clips(kind(list(one.named_parameters())))
    clips(list(two.parameters()))
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


def test_tensors_under_names_are_clipped():
    tensors = {"a": torch.ones(4), "b": torch.ones(4)}
    fastclip.clip_tensors_(tensors.items(), 1.0)
    assert fastclip.get_total_norm(tensors.items()) == pytest.approx(1.0, abs=1e-5)
