"""A layer under a NormMonitor with a limit, and gradients of a known norm."""

from __future__ import annotations

import torch
from torch import nn

import fastclip

LIMIT = 50.0


def parts(fused=False, lr=0.1, **kwargs):
    torch.manual_seed(0)
    model = nn.Linear(1, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=fused)
    options = {"every": 1, "max_norm": LIMIT, **kwargs}
    return model, optimizer, fastclip.NormMonitor(model, optimizer, **options)


def put(model, size):
    model.weight.grad = torch.full((4, 1), size / 2)  # of norm `size`
