"""Optimizers inside wrappers: the real ones of Accelerate and Lightning, and look-alikes."""

from __future__ import annotations

import pytest
import torch

from fastclip.optimizers import step_of, unwrap


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)


class Forwarding:
    """Forwards what it lacks, as trainers' wrappers do; not an Optimizer itself."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.__dict__["optimizer"], name)


class Wrapping(torch.optim.Optimizer):
    """An Optimizer that never called Optimizer.__init__."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.core
@pytest.mark.parametrize(
    "wrap",
    [
        lambda o: o,
        Forwarding,
        Wrapping,
        lambda o: Forwarding(Wrapping(o)),
        lambda o: Wrapping(Forwarding(Wrapping(o))),
    ],
)
def test_the_innermost_optimizer_is_found(wrap):
    optimizer = sgd()
    assert unwrap(wrap(optimizer)) is optimizer


@pytest.mark.core
def test_what_is_no_optimizer_is_named():
    class Itself:
        step = param_groups = None

        @property
        def optimizer(self):
            return self

    for wrong, named in [
        (None, "a NoneType"),
        ([sgd()], "a list"),
        (torch.nn.Linear(1, 1), "a Linear"),
        (torch.optim.SGD, "the class SGD"),
        (Itself(), "a Itself"),
    ]:
        with pytest.raises(TypeError, match=f"optimizer must be a torch.optim.Optimizer.*{named}"):
            unwrap(wrong)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    optimizer = sgd()
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    assert type(wrapped) is not type(optimizer)
    assert unwrap(wrapped) is optimizer


def test_lightning():
    module = pytest.importorskip("lightning.pytorch.core.optimizer")
    optimizer = sgd()
    wrapped = module.LightningOptimizer(optimizer)
    assert unwrap(wrapped) is optimizer
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    step_of(wrapped)()  # no Trainer has taken it: its own step would fail
    assert optimizer.param_groups[0]["params"][0][0].item() == pytest.approx(0.9)
