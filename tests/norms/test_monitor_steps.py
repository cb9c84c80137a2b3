"""Which step a row is of, however the step is made."""

from __future__ import annotations

import pytest
import torch
from monitored import LIMIT, parts, put
from torch import nn

import fastclip

pytestmark = pytest.mark.core
SIZES = (1.0, 10.0, 100.0, 1000.0)


def clip_then_step(zero):
    model, optimizer, monitor = parts()
    for size in SIZES:
        zero(optimizer)
        (model.weight * size / 2).sum().backward()
        monitor.observe(fastclip.clip_grad_norm_(model.parameters(), LIMIT))
        optimizer.step()
    return monitor


def clip_in_step(zero):
    model, optimizer, monitor = parts(fused=True)
    for size in SIZES:
        (model.weight * size / 2).sum().backward()
        norm = fastclip.clip_grads_in_step_(optimizer, LIMIT)
        monitor.observe(norm)
        zero(optimizer)
    return monitor


def clip_in_step_then_zero_then_observe(_):
    model, optimizer, monitor = parts(fused=True)
    for size in SIZES:
        (model.weight * size / 2).sum().backward()
        norm = fastclip.clip_grads_in_step_(optimizer, LIMIT)
        optimizer.zero_grad()
        monitor.observe(norm)
    return monitor


def closure(zero, keyword=False):
    model, optimizer, monitor = parts()
    for size in SIZES:

        def loss(size=size):
            zero(optimizer)
            value = (model.weight * size / 2).sum()
            value.backward()
            monitor.observe(fastclip.clip_grad_norm_(model.parameters(), LIMIT))
            return value

        optimizer.step(**{"closure": loss}) if keyword else optimizer.step(loss)
    return monitor


def scaled(zero, fused=False, unscale=True):
    model, optimizer, monitor = parts(fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for size in SIZES:
        zero(optimizer)
        scaler.scale((model.weight * size / 2).sum()).backward()
        if unscale:
            monitor.observe(fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, LIMIT))
        scaler.step(optimizer)
        scaler.update()
    return monitor


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    "way",
    [
        clip_then_step,
        clip_in_step,
        clip_in_step_then_zero_then_observe,
        closure,
        lambda zero: closure(zero, keyword=True),
        scaled,
        lambda zero: scaled(zero, fused=True),
    ],
    ids=["clip", "in-step", "in-step, zero", "closure", "closure=", "scaler", "scaler, fused"],
)
def test_every_way_of_stepping_has_the_same_rows(way, set_to_none):
    monitor = way(lambda optimizer: optimizer.zero_grad(set_to_none=set_to_none))
    monitor.close()
    found = [(row["step"], row["grad_norm"], row["clip_frequency"]) for row in monitor.history]
    assert found == [
        (i + 1, pytest.approx(size), float(size > LIMIT)) for i, size in enumerate(SIZES)
    ]


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_gradient_that_nobody_observed_is_unscaled(fused):
    monitor = scaled(lambda optimizer: optimizer.zero_grad(), fused=fused, unscale=False)
    monitor.close()
    assert [row["grad_norm"] for row in monitor.history] == pytest.approx(list(SIZES))
    assert [row["grad_max"] for row in monitor.history] == pytest.approx([s / 2 for s in SIZES])


def test_lbfgs_is_measured_at_its_last_evaluation():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    monitor = fastclip.NormMonitor(model, optimizer, every=1)
    x = torch.randn(5, 3)
    for _ in range(3):

        def loss():
            optimizer.zero_grad()
            value = model(x).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        assert monitor.history[-1]["grad_norm"] == pytest.approx(norm)
    monitor.close()


def test_a_clip_in_the_step_that_nobody_observed_shows_what_the_step_used():
    model, optimizer, monitor = parts(fused=True)
    put(model, 200.0)
    fastclip.clip_grads_in_step_(optimizer, LIMIT)
    monitor.close()
    assert monitor.history[0]["grad_norm"] == pytest.approx(LIMIT)


def test_nesterov_changes_gradients_in_place_and_the_row_has_them_before():
    model = nn.Linear(1, 4, bias=False)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True
    )
    monitor = fastclip.NormMonitor(model, optimizer, every=1)
    for size in SIZES:
        put(model, size)
        optimizer.step()
    monitor.close()
    assert [row["grad_norm"] for row in monitor.history] == pytest.approx(list(SIZES))


def test_a_norm_between_two_steps_is_of_the_next_one_whose_gradients_are_there():
    """Norms of some steps only: none slides into the row of the step before."""
    model, optimizer, monitor = parts(every=2)
    for step in range(1, 7):
        optimizer.zero_grad()
        (model.weight * step / 2).sum().backward()
        if step % 3 == 0:
            monitor.observe(1000.0 * step)
        optimizer.step()
    monitor.close()
    assert [row["grad_norm"] for row in monitor.history] == pytest.approx([2.0, 4.0, 6000.0])
    assert [row["clip_frequency"] for row in monitor.history][1:] == [1.0, 1.0]


def test_steps_that_train_other_layers_each_time_keep_their_norms():
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(40)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(model, optimizer, every=1)
    norms = []
    for step, used in enumerate((0, 1, 39, 5, 0, 17)):
        optimizer.zero_grad()
        (model[used].weight * (step + 1)).sum().backward()
        if step % 2:  # the steps in between have none, which theirs must not fill
            norms.append(fastclip.clip_grad_norm_(model.parameters(), 0.5).item())
            monitor.observe(norms[-1])
        else:
            norms.append(step + 1.0)
        optimizer.step()
    monitor.close()
    assert [row["grad_norm"] for row in monitor.history] == norms


def test_history_shows_a_step_that_waits_for_its_norm():
    model, optimizer, monitor = parts(fused=True)
    put(model, 200.0)
    norm = fastclip.clip_grads_in_step_(optimizer, LIMIT)
    assert monitor.history[-1]["grad_norm"] == pytest.approx(LIMIT)
    monitor.observe(norm)
    assert [row["grad_norm"] for row in monitor.history] == pytest.approx([200.0])
    assert monitor.log_dict()["norms/grad_norm"] == pytest.approx(200.0)
    assert monitor.log_dict()["norms/step"] == 1.0
