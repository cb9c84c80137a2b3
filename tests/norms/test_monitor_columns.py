"""What the columns of a row hold: clipped and skipped steps, the update ratio, parts of a model."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from monitored import LIMIT, parts, put
from torch import nn

import fastclip

pytestmark = pytest.mark.core


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_are_counted(fused):
    """GradScaler: unfused it does not call step(), fused the step itself skips."""
    model, optimizer, monitor = parts(fused=fused, every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in (1.0, math.inf, math.nan, 1.0, 1.0, 1.0):
            optimizer.zero_grad()
            scaler.scale((model.weight * size / 2).sum()).backward()
            scaler.unscale_(optimizer)
            monitor.observe(fastclip.clip_grad_norm_(model.parameters(), LIMIT))
            scaler.step(optimizer)
            scaler.update()
        monitor.close()
    assert torch.isfinite(model.weight).all()
    assert sum(row["skipped_steps"] for row in monitor.history) == 2


def test_a_step_skipped_by_the_clip_in_it_is_counted():
    model, optimizer, monitor = parts(fused=True, every=3, exploding=math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in (1.0, math.inf, 1.0, 1.0, 1.0, 1.0):
            put(model, size)
            monitor.observe(fastclip.clip_grads_in_step_(optimizer, LIMIT))
        monitor.close()
    assert [row["skipped_steps"] for row in monitor.history] == [1.0, 0.0]


def test_clip_frequency_is_not_known_without_a_limit():
    model, optimizer, monitor = parts(max_norm=None)
    put(model, 200.0)
    monitor.observe(fastclip.clip_grad_norm_(model.parameters(), LIMIT))
    optimizer.step()
    monitor.close()
    assert math.isnan(monitor.history[0]["clip_frequency"])
    assert "norms/clip_frequency" not in monitor.log_dict()


def test_clip_frequency_over_more_norms_than_are_kept():
    model, optimizer, monitor = parts(every=1000)
    for step in range(1000):
        put(model, 100.0 if step % 4 == 0 else 1.0)
        monitor.observe(fastclip.clip_grad_norm_(model.parameters(), LIMIT))
        optimizer.step()
    assert len(monitor._seen._norms) < 300
    monitor.close()
    assert monitor.history[0]["clip_frequency"] == 0.25


def test_update_ratio_is_of_the_parameters_that_the_optimizer_updates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    first = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    second = torch.optim.SGD(model[1].parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(model, first, every=1)
    model[1](model[0](torch.randn(2, 4))).sum().backward()  # model[2] has no gradient
    before = [p.detach().clone() for p in model[0].parameters()]
    weights = nn.utils.get_total_norm([*model[0].parameters(), *model[2].parameters()]).item()
    first.step()
    second.step()
    monitor.close()
    ratios = sorted(
        ((p - old).norm() / p.norm()).item()
        for p, old in zip(model[0].parameters(), before, strict=True)
    )
    row = monitor.history[0]
    assert row["update_ratio"] == pytest.approx(ratios[0])
    assert row["worst_parameter"].startswith("0.")
    assert row["param_norm"] == pytest.approx(weights, rel=0.2)


def test_a_group_that_is_added_later_is_watched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(model, optimizer, every=1, by="group")
    for added in (False, True):
        if added:
            optimizer.add_param_group({"params": list(model[1].parameters()), "name": "head"})
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    monitor.close()
    first, second = monitor.history
    assert "grad_norm/head" not in first
    total = math.hypot(second["grad_norm/0"], second["grad_norm/head"])
    assert total == pytest.approx(second["grad_norm"])


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("depth", ["0", "1"]),
        (lambda name: name.rpartition(".")[2], ["weight", "bias"]),
        ("group", ["0", "1"]),
    ],
)
def test_norms_of_parts(by, names, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in model], lr=0.1)
    path = tmp_path / "norms.csv"
    with fastclip.NormMonitor(model, optimizer, every=1, by=by, csv=path) as monitor:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    row = monitor.history[0]
    assert [key for key in row if "/" in key] == [f"grad_norm/{name}" for name in names]
    report = fastclip.grad_norms(model).per_parameter
    key = by if callable(by) else lambda name: name.partition(".")[0]
    for name in names:
        mine = [norm for full, norm in report.items() if key(full) == name]
        assert row[f"grad_norm/{name}"] == pytest.approx(math.hypot(*mine))
    assert (
        path.read_text()
        .splitlines()[0]
        .endswith(f"worst_parameter,grad_norm/{names[0]},grad_norm/{names[1]}")
    )
