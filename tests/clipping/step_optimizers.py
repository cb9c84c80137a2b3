"""Optimizers, parameters, gradients and a wrapper for tests of clipping in the step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

OPTIMIZERS = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1, fused=True),
    "amsgrad": lambda ps: torch.optim.Adam(ps, lr=0.1, amsgrad=True, fused=True),
    "maximize": lambda ps: torch.optim.Adam(ps, lr=0.1, maximize=True, fused=True),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.1, fused=True),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    "dampening": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, dampening=0.4, fused=True),
    "nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1, fused=True),
}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in [(3, 4), (5,), ()]]


def fill(ps, step: int, bad: float | None = None, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in ps:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
    if bad is not None:
        ps[1].grad[2] = bad


def make(name, ps) -> torch.optim.Optimizer:
    optimizer = OPTIMIZERS[name](ps)
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        pytest.skip(f"this torch's fused {name} takes no gradient factor")
    return optimizer


def assert_same(one, two) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


class Forwarding:
    """Holds the optimizer and forwards what it lacks, as trainers' wrappers do."""

    def __init__(self, optimizer, scaler=None, every=1):
        self.optimizer, self.scaler, self.every, self.calls = optimizer, scaler, every, 0

    def __getattr__(self, name):
        return getattr(self.__dict__["optimizer"], name)

    def step(self, closure=None):
        self.calls += 1
        if self.calls % self.every:
            return
        if self.scaler is None:
            self.optimizer.step(closure)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
