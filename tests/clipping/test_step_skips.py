"""A skipped step leaves no trace, the first included, and hooks of the step see it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from step_optimizers import OPTIMIZERS, assert_same, fill, make, parameters

import fastclip

pytestmark = pytest.mark.core


@pytest.fixture
def memory_nobody_wrote_is_nan():
    torch.use_deterministic_algorithms(True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("memory_nobody_wrote_is_nan")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("reason", [math.inf, -math.inf, math.nan, "threshold", "found_inf"])
@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_skipped_step_changes_nothing_the_first_included(name, reason, when):
    ps, others = parameters(), parameters()
    optimizer, other = make(name, ps), make(name, others)
    for step in range(5):
        if step == when:
            before = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in ps]))
            fill(ps, 99, None if isinstance(reason, str) else reason, scale=100.0)
            grads = [p.grad.clone() for p in ps]
            if reason == "found_inf":
                optimizer.found_inf = torch.tensor(1.0)
            limit = 50.0 if reason == "threshold" else math.inf
            fastclip.clip_grads_in_step_(optimizer, 1.0, skip_above=limit)
            if reason == "found_inf":
                del optimizer.found_inf
            assert_same((optimizer.state_dict(), [p.detach() for p in ps]), before)
            torch.testing.assert_close([p.grad for p in ps], grads, equal_nan=True)
        fill(ps, step)
        fill(others, step)
        fastclip.clip_grads_in_step_(optimizer, 1.0, skip_above=50.0)
        fastclip.clip_grads_in_step_(other, 1.0)
    assert_same(list(ps), list(others))
    assert all(p.isfinite().all() for p in ps)


@pytest.mark.usefixtures("memory_nobody_wrote_is_nan")
@pytest.mark.parametrize("name", ["adamw", "momentum", "dampening", "unfused"])
@pytest.mark.parametrize("reason", [math.inf, math.nan, "threshold"])
def test_a_skip_through_gradscaler_leaves_no_trace_and_a_spike_keeps_the_scale(name, reason):
    ps, others = parameters(), parameters()
    if name == "unfused":
        optimizer, other = (torch.optim.SGD(q, lr=0.1, momentum=0.9) for q in (ps, others))
    else:
        optimizer, other = make(name, ps), make(name, others)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    before = [p.detach().clone() for p in ps]
    bad = None if reason == "threshold" else reason
    fill(ps, 99, bad, scale=8 * 100.0)
    fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
    assert scaler.step(optimizer) is None
    scaler.update()
    assert scaler.get_scale() == (8.0 if reason == "threshold" else 4.0)
    assert_same([p.detach() for p in ps], before)
    assert all(p.grad is not None for p in ps)
    for step in range(3):
        fill(ps, step, scale=scaler.get_scale())
        fill(others, step)
        fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
        scaler.step(optimizer)
        scaler.update()
        fastclip.clip_grad_norm_(others, 1.0)
        other.step()
    torch.testing.assert_close(list(ps), list(others), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_a_spike_under_gradscaler_is_seen_by_hooks_of_the_step(fused):
    ps = parameters()
    optimizer = torch.optim.SGD(ps, lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    seen, before = [], []
    optimizer.register_step_pre_hook(lambda o, *_: before.append(float(getattr(o, "found_inf", 0))))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(float(getattr(o, "found_inf", 0))))
    for scale in (1.0, 100.0, 1.0):
        fill(ps, 0, scale=scale)
        fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf")
    assert before == seen == [0.0, 1.0, 0.0]


def test_a_step_that_never_came_skips_no_later_one():
    ps = parameters()
    optimizer = OPTIMIZERS["sgd"](ps)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    fill(ps, 0, scale=1e4)
    fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
    scaler.update()
    before = ps[0].detach().clone()
    fill(ps, 1)
    optimizer.step()
    assert not torch.equal(ps[0], before)


def test_skipped_steps_are_seen_by_hooks_of_the_step():
    ps = parameters()
    optimizer = OPTIMIZERS["adamw"](ps)
    seen = []
    optimizer.register_step_post_hook(lambda o, *_: seen.append(float(getattr(o, "found_inf", 0))))
    for scale in (1.0, 100.0, 1.0):
        fill(ps, 0, scale=scale)
        fastclip.clip_grads_in_step_(optimizer, 1.0, skip_above=torch.tensor(50.0))
    assert seen == [0.0, 1.0, 0.0]
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("wrong", [-1.0, math.nan, torch.ones(2), "x", None])
def test_a_wrong_threshold_is_named(wrong):
    ps = parameters()
    fill(ps, 0)
    with pytest.raises((ValueError, TypeError), match="skip_above"):
        fastclip.clip_grads_in_step_(OPTIMIZERS["sgd"](ps), 1.0, skip_above=wrong)
