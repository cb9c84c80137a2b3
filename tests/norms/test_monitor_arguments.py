"""What a monitor is given: arguments, norms, wrapped models and optimizers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core


def parts(**kwargs):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, fastclip.NormMonitor(model, optimizer, **{"every": 1, **kwargs})


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"every": 2.5}, TypeError),
        ({"every": "2"}, TypeError),
        ({"every": True}, ValueError),
        ({"every": -1}, ValueError),
        ({"writer": "runs/first"}, TypeError),
        ({"writer": type("Writer", (), {"add_scalar": print})}, TypeError),
        ({"csv": 3}, TypeError),
        ({"max_norm": "one"}, TypeError),
        ({"max_norm": float("nan")}, ValueError),
        ({"max_norm": -1.0}, ValueError),
        ({"vanishing": None}, TypeError),
        ({"exploding": float("nan")}, ValueError),
        ({"by": "layer"}, ValueError),
        ({"depth": 0, "by": "depth"}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_when_made(kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))):
        parts(**kwargs)


def test_the_model_and_the_optimizer_belong_together():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="none of its 2"):
        fastclip.NormMonitor(model, optimizer)
    with pytest.raises(TypeError, match="named_parameters"):
        fastclip.NormMonitor(model.parameters(), optimizer)
    with pytest.raises(TypeError, match="optimizer"):
        fastclip.NormMonitor(model, model)


@pytest.mark.parametrize(
    ("norm", "error"),
    [
        (torch.ones(3), ValueError),
        (torch.ones(0), ValueError),
        (torch.tensor(1j), TypeError),
        (torch.tensor(True), TypeError),
        ("1.0", TypeError),
        (None, TypeError),
        ([1.0], TypeError),
    ],
)
def test_a_norm_that_is_no_number_is_refused_and_training_goes_on(norm, error):
    model, optimizer, monitor = parts()
    with pytest.raises(error, match="total_norm"):
        monitor.observe(norm)
    train(model, optimizer)
    monitor.close()
    assert len(monitor.history) == 2


@pytest.mark.parametrize(
    "norm", [1.5, torch.tensor([[1.5]]), torch.tensor(1.5, dtype=torch.float16)]
)
def test_numbers_of_several_kinds(norm):
    model, optimizer, monitor = parts(max_norm=1.0)
    model(torch.ones(1, 2)).sum().backward()
    monitor.observe(norm)
    optimizer.step()
    assert monitor.history[0]["grad_norm"] == 1.5
    assert monitor.history[0]["clip_frequency"] == 1.0


def test_a_norm_that_is_overwritten_later_counts_as_it_was():
    model, optimizer, monitor = parts()
    norm = torch.tensor(1.5)  # as a captured graph's output is
    model(torch.ones(1, 2)).sum().backward()
    monitor.observe(norm)
    norm.fill_(9.0)
    optimizer.step()
    assert monitor.history[0]["grad_norm"] == 1.5


@pytest.mark.parametrize("how", [lambda m: list(m.named_parameters()), torch.compile])
def test_pairs_and_wrapped_models(how):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(how(model), optimizer, every=1)
    train(model, optimizer)
    monitor.close()
    assert {row["worst_parameter"] for row in monitor.history} <= {"weight", "bias"}


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)


def test_a_wrapped_optimizer_is_found():
    model = nn.Linear(2, 2)
    optimizer = Wrapper(Wrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    monitor = fastclip.NormMonitor(model, optimizer, every=2)
    train(model, optimizer, 4)
    monitor.close()
    assert [row["step"] for row in monitor.history] == [2, 4]


def test_warnings_point_at_the_line_of_the_step():
    model, optimizer, monitor = parts(exploding=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer)
        monitor.close()
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name] * 2
