"""The factor that a step takes: past float32, in float64, on a device without waiting for it."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_backend import needs_cuda_build
from step_optimizers import OPTIMIZERS, fill, parameters
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import fastclip
from fastclip.clipping.factor import Rule, _inverse_on_device, _inverse_on_host

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("dtype", "size", "limit"),
    [
        *((torch.float64, *case) for case in [(1e60, 1.0), (1e60, 1e-200)]),
        *(
            (dtype, *case)
            for dtype in (torch.float64, torch.float32)
            for case in [(1.0, 1e-45), (3e37, 1e-3), (1e-3, 1e-42), (2.0, -1e-42)]
        ),
    ],
)
@pytest.mark.parametrize("scale", [None, 4.0])
def test_ratios_past_float32_clip_first(dtype, size, limit, scale):
    p = nn.Parameter(torch.zeros(8, dtype=dtype))
    optimizer = torch.optim.SGD([p], lr=0.1, fused=True)
    p.grad = torch.full((8,), size * (scale or 1.0), dtype=dtype)
    if scale is not None:
        optimizer.grad_scale = torch.tensor(scale)
    fastclip.clip_grads_in_step_(optimizer, limit)
    exact = size * min(limit / (size * 8**0.5 + 1e-6), 1.0) * -0.1
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    right = torch.full((8,), exact, dtype=torch.float64)
    torch.testing.assert_close(p.detach().double(), right, rtol=tolerance, atol=2 * smallest)


def test_float64_steps_are_those_of_clipping_first():
    ps, others = ([nn.Parameter(p.double()) for p in parameters()] for _ in range(2))
    optimizer, other = OPTIMIZERS["sgd"](ps), OPTIMIZERS["sgd"](others)
    for step in range(5):
        fill(ps, step)
        fill(others, step)
        fastclip.clip_grads_in_step_(optimizer, 0.3)
        torch.nn.utils.clip_grad_norm_(others, 0.3)
        other.step()
    torch.testing.assert_close(list(ps), list(others), rtol=1e-13, atol=0)


@pytest.mark.parametrize("norm", [0.0, 0.5, 3.0, 1e30, 3e38, 1e300, math.inf])
@pytest.mark.parametrize("limit", [1.0, 1e-3, 1e-9, 0.0, -1.0, -1e-9, math.inf, 1e200])
@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("wide", [False, True])
def test_device_and_host_take_the_same_factor(norm, limit, scale, wide):
    rule, exact = Rule(limit, 2.0), torch.tensor(norm, dtype=torch.float64)
    given = None if scale is None else torch.tensor(scale)
    skip = rule.skips(exact.float())
    results = []
    for inverse_of in (_inverse_on_host, _inverse_on_device):
        first = [1.0]

        def clip_first(by, first=first):
            first[0] = (limit / (by + 1e-6)).clamp(max=1.0).item()

        arguments = bool(skip) if inverse_of is _inverse_on_host else skip
        inverse = inverse_of(rule, exact, given, arguments, wide, clip_first)
        results.append((float(inverse), first[0]))
    if not skip:
        assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert results[1][1] == 1.0 or not skip


@needs_cuda_build
@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [1.0, 1e-3])
def test_a_gpu_is_not_waited_for(monkeypatch, name, dtype, limit):
    """On fake tensors, which have a device and no values: reading one would raise."""
    seen = []  # torch's fused SGD has no version for them
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *a, **k: seen.append(k["is_first_step"]))
    with FakeTensorMode():
        ps = [nn.Parameter(torch.ones(3, 4, device="cuda", dtype=dtype)) for _ in range(2)]
        optimizer = OPTIMIZERS[name](ps)
        threshold = torch.tensor(50.0, device="cuda")
        for _ in range(2):
            for p in ps:
                p.grad = torch.ones_like(p)
            total = fastclip.clip_grads_in_step_(optimizer, limit, skip_above=threshold)
        with pytest.raises(DataDependentOutputException):
            total.item()
    # A first step by a momentum of zeros is the same, and is nothing where it is skipped.
    assert seen == ([] if name == "adamw" else [False, False])
