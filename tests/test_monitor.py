"""NormMonitor around a real optimizer."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core


class Writer:
    def __init__(self):
        self.rows = []

    def add_scalar(self, *row):
        self.rows.append(row)


def train(monitored, steps=6, gradient=1.0, **kwargs):
    net = nn.Linear(3, 2, bias=False)
    nn.init.constant_(net.weight, 2.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    monitor = fastclip.NormMonitor(net, optimizer, every=2, **kwargs) if monitored else None
    for step in range(steps):
        net.weight.grad = torch.zeros(2, 3)
        net.weight.grad[0, 0] = gradient * (step + 1)
        norm = fastclip.clip_grad_norm_(net.parameters(), 2.5)
        if monitor:
            monitor.observe(norm)
        optimizer.step()
    return net, monitor, optimizer


def test_rows_by_hand(tmp_path):
    writer = Writer()
    path = tmp_path / "norms.csv"
    plain = train(False)[0]
    net, monitor, optimizer = train(True, max_norm=2.5, csv=path, writer=writer)
    assert torch.equal(net.weight, plain.weight)  # watching changes nothing
    assert [row["step"] for row in monitor.history] == [2, 4, 6]
    first = monitor.history[0]  # gradients 1 then 2, weight 2 then 1.5 then 0.5
    assert first["grad_norm"] == pytest.approx(2.0)
    after = math.sqrt(5 * 4 + 0.25)
    assert first["param_norm"] == pytest.approx(after)
    assert first["update_ratio"] == pytest.approx(1.0 / after)
    assert [row["clip_frequency"] for row in monitor.history] == [0.0, 1.0, 1.0]
    assert first["worst_parameter"] == "weight"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["grad_norm"]) for row in rows] == pytest.approx([2.0, 4.0, 6.0])
    assert ("norms/grad_norm", pytest.approx(2.0), 2) in writer.rows
    monitor.close()
    for _ in range(2):
        optimizer.step()
    assert len(monitor.history) == 3


@pytest.mark.parametrize(
    ("gradient", "text"), [(1e9, "gradient norm"), (math.nan, "weight"), (1e-12, "vanish")]
)
def test_warnings(gradient, text):
    with pytest.warns(UserWarning, match=text):
        train(True, steps=2, gradient=gradient)


def test_quiet_in_between(recwarn):
    train(True)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_every_must_be_positive():
    net = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="every"):
        fastclip.NormMonitor(net, torch.optim.SGD(net.parameters()), every=0)
