"""Triton's kernel of unit_clip on the CPU. Run by test_unit_clip_triton.py, TRITON_INTERPRET=1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from fastclip.ops.grad_norm.gpu import tables
from fastclip.ops.unit_clip import dispatch as op
from fastclip.ops.unit_clip.triton import clip_units_

SHAPES = [(7, 5), (3, 4, 3, 3), (33,), (1,), (2, 9000), (40, 1), (0, 3), (3, 0)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULES = [(0.01, 1e-3), (10.0, 1e-3), (0.5, 0.0)]


@pytest.fixture(autouse=True)
def the_cpu_is_a_gpu(monkeypatch):
    monkeypatch.setattr(tables, "is_for_triton", lambda device: device.type == "cpu")


def parameters(dtypes=DTYPES, shapes=SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for i, shape in enumerate(shapes):
        p = nn.Parameter(torch.randn(shape, generator=generator).to(dtypes[i % len(dtypes)]))
        p.grad = torch.randn(shape, generator=generator).to(p.dtype)
        found.append(p)
    return found


def check(ours, rule=(0.01, 1e-3), left=()):
    theirs = [(p.detach().clone(), p.grad.clone()) for p in ours]
    assert clip_units_(ours, *rule) == list(left)
    for p, (weight, grad) in zip(ours, theirs, strict=True):
        if any(p is q for q in left):
            assert torch.equal(p.grad, grad)
            continue
        op.clip_units_ref_(weight, grad, *rule)
        # The interpreter cuts bfloat16 off where a device rounds to nearest.
        tolerance = torch.finfo(p.dtype).eps + 3e-7
        torch.testing.assert_close(p.grad, grad, rtol=tolerance, atol=0, equal_nan=True)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtypes", [*((d,) for d in DTYPES), DTYPES])
def test_as_the_reference(dtypes, rule):
    check(parameters(dtypes), rule)


def test_units_of_channels_last_filters_lie_together():
    ours = parameters((torch.float32,), [(6, 5, 3, 3)] * 2)
    ours[0].data = ours[0].data.to(memory_format=torch.channels_last)
    ours[1].grad = ours[1].grad.to(memory_format=torch.channels_last)
    check(ours)


def test_values_that_are_not_finite_or_zero():
    ours = parameters((torch.float32,), [(6, 40)] * 2)
    with torch.no_grad():
        ours[0].grad[0, 3], ours[0].grad[1, 3], ours[0][2, 5] = math.nan, math.inf, math.inf
        ours[0].grad[2, 1] = -math.inf
        ours[0].grad[3], ours[0][4] = 0.0, 0.0
        ours[1].grad.mul_(1e-30)
        ours[1][0] = 1e30
    check(ours)


def test_units_within_their_limit_are_not_written():
    (p,) = parameters((torch.float32,), [(5, 300)])
    p.grad.mul_(1e-6)
    kept = p.grad.clone()
    clip_units_([p], 0.01, 1e-3)
    assert torch.equal(p.grad, kept)


def test_what_it_leaves_to_the_reference():
    ours = parameters((torch.float32,), [(4, 6)] * 4)
    ours[0].data = ours[0].data.double()
    ours[0].grad = ours[0].detach().clone()
    ours[1].grad = torch.randn(6, 4).t()
    check(ours, left=ours[:2])
    shared = parameters((torch.float32,), [(4, 6)] * 2)
    shared[1].grad = shared[0].grad
    assert clip_units_(shared, 0.01, 1e-3) == shared


def test_by_the_public_function(monkeypatch):
    from fastclip import native
    from fastclip.clipping.adaptive.agc import AGC

    monkeypatch.setattr(native, "core", None)
    ours = parameters()
    versions = [p.grad._version for p in ours]
    theirs = [(p.detach().clone(), p.grad.clone()) for p in ours]
    AGC(0.02).clip_(ours)
    for p, (weight, grad), version in zip(ours, theirs, versions, strict=True):
        op.clip_units_ref_(weight, grad, 0.02, 1e-3)
        tolerance = torch.finfo(p.dtype).eps + 3e-7
        torch.testing.assert_close(p.grad, grad, rtol=tolerance, atol=0)
        assert p.grad._version > version
