"""unit_clip by the backends of a GPU, and by CUDA's whole path on the CPU: see conftest.

interpreted_unit_clip.py makes the same tests of Triton's kernel under its interpreter.
"""

from __future__ import annotations

import math

import pytest
import torch
from gpu_backend import Backend
from torch import nn

from fastclip.clipping.adaptive.agc import AGC
from fastclip.ops.unit_clip import dispatch as op

SHAPES = [
    (7, 5),
    (3, 4, 3, 3),
    (33,),
    (1,),
    (2, 9000),
    (40, 1),
    (0, 3),
    (3, 0),
    (),
    (2, 1, 1),
    (6, 1030),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULES = [(0.01, 1e-3), (10.0, 1e-3), (0.5, 0.0)]


@pytest.fixture
def left(backend, monkeypatch) -> list[nn.Parameter]:
    """What no kernel has taken: the parameters that the reference clips."""
    found: list[nn.Parameter] = []
    by_reference = op._by_reference_

    def noted(parameters, *rule):
        found.extend(parameters)
        by_reference(parameters, *rule)

    monkeypatch.setattr(op, "_by_reference_", noted)
    return found


def parameters(backend: Backend, dtypes=DTYPES, shapes=SHAPES) -> list[nn.Parameter]:
    found = []
    for i, shape in enumerate(shapes):
        dtype = dtypes[i % len(dtypes)]
        p = nn.Parameter(backend.randn(shape, dtype, seed=2 * i))
        p.grad = backend.randn(shape, dtype, seed=2 * i + 1)
        found.append(p)
    return found


def copies(parameters):
    return [(p.detach().clone(), p.grad.clone()) for p in parameters]


def compare(parameters, copies, rule):
    for p, (weight, grad) in zip(parameters, copies, strict=True):
        op.clip_units_ref_(weight, grad, *rule)
        # The interpreter cuts bfloat16 off where a device rounds to nearest.
        tolerance = torch.finfo(p.dtype).eps + 3e-7
        torch.testing.assert_close(p.grad, grad, rtol=tolerance, atol=0, equal_nan=True)


def check(ours, left, rule=(0.01, 1e-3), by_reference=()):
    theirs = copies(ours)
    op.clip_units_(ours, *rule)
    assert list(map(id, left)) == list(map(id, by_reference))
    compare(ours, theirs, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtypes", [*((d,) for d in DTYPES), DTYPES])
def test_as_the_reference(backend, left, dtypes, rule):
    check(parameters(backend, dtypes), left, rule)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1025, 20_001])
def test_units_that_no_block_fills_and_at_any_alignment(backend, left, dtype, size):
    ours = parameters(backend, [dtype], [(3, size), (3 * size,)])
    for offset, p in enumerate(ours, 1):
        memory = torch.full((p.numel() + 64,), math.nan, device=p.device, dtype=dtype)
        view = memory[16 + offset : 16 + offset + p.numel()].view(p.shape)
        p.grad = view.copy_(p.grad)
        check([p], left)
        assert memory.isnan().sum() == 64


def test_units_of_channels_last_filters_lie_together(backend, left):
    ours = parameters(backend, (torch.float32,), [(6, 5, 3, 3)] * 2)
    ours[0].data = ours[0].data.to(memory_format=torch.channels_last)
    ours[1].grad = ours[1].grad.to(memory_format=torch.channels_last)
    check(ours, left)


@pytest.mark.parametrize("size", [40, 3000])
def test_values_that_are_not_finite_or_zero(backend, left, size):
    ours = parameters(backend, (torch.float32,), [(6, size)] * 2)
    with torch.no_grad():
        ours[0].grad[0, 3], ours[0].grad[1, 3], ours[0][2, 5] = math.nan, math.inf, math.inf
        ours[0].grad[2, 1] = -math.inf
        ours[0].grad[3], ours[0][4] = 0.0, 0.0
        ours[0][5, 7] = math.nan
        ours[1].grad.mul_(1e-30)
        ours[1][0] = 1e30
    check(ours, left)


def test_units_within_their_limit_are_not_written(backend, left):
    (p,) = parameters(backend, (torch.float32,), [(5, 300)])
    p.grad.mul_(1e-6)
    kept = p.grad.clone()
    op.clip_units_([p], 0.01, 1e-3)
    assert left == []
    assert torch.equal(p.grad, kept)


def test_what_it_leaves_to_the_reference(backend, left):
    ours = parameters(backend, (torch.float32,), [(4, 6)] * 4)
    ours[0].data = ours[0].data.double()
    ours[0].grad = ours[0].detach().clone()
    ours[1].grad = backend.randn((6, 4)).t()
    check(ours, left, by_reference=ours[:2])
    left.clear()
    shared = parameters(backend, (torch.float32,), [(4, 6)] * 2)
    shared[1].grad = shared[0].grad
    op.clip_units_(shared, 0.01, 1e-3)
    assert list(map(id, left)) == list(map(id, shared))


def test_by_the_public_function_and_versions_move(backend, left):
    ours = parameters(backend)
    versions, theirs = [p.grad._version for p in ours], copies(ours)
    AGC(0.02).clip_(parameters(backend))  # warm
    with backend.quiet():
        AGC(0.02).clip_(ours)
    assert left == []
    compare(ours, theirs, (0.02, 1e-3))
    for p, version in zip(ours, versions, strict=True):
        assert p.grad._version > version


def test_equal_runs_are_bit_equal(backend, left):
    runs = []
    for _ in range(2 if backend.device == "cpu" else 50):  # a device has races to lose
        ours = parameters(backend, shapes=[(30, 70), (3, 20_000), (9, 3, 7, 7), (9000,)])
        op.clip_units_(ours, 0.01, 1e-3)
        runs.append([p.grad for p in ours])
    assert left == []
    for run in runs:
        assert all(map(torch.equal, runs[0], run))
