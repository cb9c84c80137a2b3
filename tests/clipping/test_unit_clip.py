"""The op unit_clip against float64: every dtype, shape and layout, extremes, what is written."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys

import pytest
import torch
from gpu_backend import needs_cuda_build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from unit_clips import DTYPES, TOLERANCE, check, exact, parameter, randn

import fastclip
from fastclip import native
from fastclip.ops.unit_clip import dispatch as op

pytestmark = pytest.mark.core

needs_native = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
SHAPES = [(), (1,), (7,), (5, 3), (1, 9), (4, 16), (3, 65), (8, 4, 3, 3), (2, 1, 1), (6, 1030)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clipping", [0.01, 0.9, 30.0])
def test_every_shape_strategy(dtype, clipping):
    check([parameter(randn(s, dtype), randn(s, dtype, 1)) for s in SHAPES], clipping)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(70_001,), (3, 140_000), (1_200, 1_200), (1, 300_000)])
def test_units_larger_than_a_piece_and_lists_larger_than_a_thread_strategy(dtype, shape):
    check([parameter(randn(shape, dtype), randn(shape, dtype, i)) for i in range(1, 4)])


def test_worked_by_hand():
    p = parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.6, 0.8], [3.0, 4.0]]))
    fastclip.AGC(0.1, 1e-3).clip_([p])
    assert p.grad.flatten().tolist() == pytest.approx([0.3, 0.4, 6e-5, 8e-5])


def test_empty_tensors_none_and_nothing():
    grad = torch.ones(3)
    shapes = [(0,), (0, 5), (5, 0), (2, 0, 3)]
    empty = [parameter(torch.empty(s), torch.empty(s)) for s in shapes]
    fastclip.AGC(0.01).clip_([*empty, nn.Parameter(torch.ones(2)), parameter(torch.ones(3), grad)])
    assert grad.norm().item() == pytest.approx(0.01 * math.sqrt(3))
    fastclip.AGC().clip_([])
    fastclip.AGC().clip_(iter([]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30, 3e37])
def test_squares_that_leave_the_dtype_strategy(dtype, eps, scale):
    shape = (3, 50)
    check([parameter(randn(shape, dtype, 0, 1 / scale), randn(shape, dtype, 1, scale))], eps=eps)
    check([parameter(randn(shape, dtype, 0, scale), randn(shape, dtype, 1, 1.0))], eps=eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_unit(dtype):
    weight, grad = randn((6, 40), dtype), randn((6, 40), dtype, 1)
    grad[0, 3] = math.nan
    grad[1, 39] = math.inf
    weight[2, 0] = math.nan
    weight[3, 0] = math.inf
    grad[4, 0] = weight[4, 0] = -math.inf
    check([parameter(weight, grad)])


LAYOUTS = {"dense": lambda x: x, "gaps": lambda x: x.t().contiguous().t()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1e-9, 3e-8, 6e-7])
def test_a_limit_under_1e_6_leaves_what_is_within_it(dtype, layout, size):
    grad = LAYOUTS[layout](torch.full((3, 4), size, dtype=dtype))
    norm = grad.double()[0].norm().item()
    for eps, stays in ((1.01 * norm, True), (0.5 * norm, False)):
        p = parameter(LAYOUTS[layout](torch.zeros(3, 4, dtype=dtype)), grad.clone())
        before = p.grad.clone()
        check([p], 1.0, eps)
        assert torch.equal(p.grad, before) == (stays or norm == 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e20),
        (torch.float32, 3e38),
        (torch.bfloat16, 1e38),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
    ],
)
def test_no_layout_overflows_or_underflows(layout, dtype, size):
    weight = LAYOUTS[layout](torch.full((3, 4), min(1.0, size), dtype=dtype))
    check([parameter(weight, LAYOUTS[layout](torch.full((3, 4), size, dtype=dtype)))], eps=0.0)
    p = parameter(LAYOUTS[layout](torch.full((3, 4), size, dtype=dtype)), weight.detach().clone())
    check([p], 2.0, eps=0.0)


@pytest.mark.parametrize("clip_factor", [1e-9, 1e-4, 0.01, 2.0])
def test_tiny_and_large_gradients_are_timm_s(clip_factor):
    timm_agc = pytest.importorskip("timm.utils.agc")
    rows = torch.logspace(-10, 4, 15)
    mine, theirs = (parameter(rows[:, None].expand(15, 4) * 10, randn((15, 4))) for _ in range(2))
    for p in (mine, theirs):
        p.grad *= rows.flip(0)[:, None]
    fastclip.AGC(clip_factor, 1e-3).clip_([mine])
    timm_agc.adaptive_clip_grad([theirs], clip_factor, 1e-3)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=0)


def test_zero_weights_and_zero_gradients():
    p = parameter(torch.zeros(4, 4), torch.full((4, 4), 0.5))
    check([p, parameter(torch.zeros(9), torch.zeros(9))], eps=1e-3)
    assert p.grad.norm(dim=1).tolist() == pytest.approx([1e-5] * 4)


@needs_native
def test_the_cuda_kernel_takes_nothing_of_the_cpus():
    p = parameter(torch.ones(2, 2), torch.ones(2, 2))
    call = functools.partial(native.core.cuda_clip_units, [p], 0.01, 1e-3, lambda index: "")
    if native.core.build_info()["cuda"]:
        assert call() == ([], [p])
    else:
        with pytest.raises(RuntimeError, match="without CUDA"):
            call()
    assert (p.grad == 1).all()


def test_other_tensors_go_to_the_reference():
    class Odd(torch.Tensor):
        pass

    odd = torch.ones(3, 3).as_subclass(Odd)
    odd.grad = torch.ones(3, 3).as_subclass(Odd)
    parameters = [odd, parameter(torch.ones(3, 3), torch.ones(3, 3))]
    fastclip.AGC(0.01).clip_(p for p in parameters)
    for p in parameters:
        torch.testing.assert_close(p.grad.norm(dim=1), torch.full((3,), 0.01 * 3**0.5))
    with pytest.raises(AttributeError, match="grad"):
        fastclip.AGC().clip_([object()])


@needs_cuda_build
def test_a_gpu_is_not_waited_for():
    """On fake tensors, which have a device and no values: reading one would raise."""
    with FakeTensorMode():
        parameters = [nn.Parameter(torch.ones(s, device="cuda")) for s in SHAPES]
        for p in parameters:
            p.grad = torch.ones_like(p)
        fastclip.AGC().clip_(parameters)
        with pytest.raises(DataDependentOutputException):
            parameters[0].item()


@needs_native
def test_the_same_bits_at_any_number_of_threads():
    before = torch.get_num_threads()
    shapes = [(700, 900), (2_000_000,), (33,), (64, 64, 3, 3)]
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parameters = [parameter(randn(s), randn(s, seed=1)) for s in shapes]
            fastclip.AGC(0.01).clip_(parameters)
            results.append(torch.cat([p.grad.flatten() for p in parameters]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_itself(dtype):
    for shape in SHAPES:
        p = parameter(randn(shape, dtype), randn(shape, dtype, 1))
        expected = exact(p, 0.01, 1e-3)
        op.clip_units_ref_(p, p.grad, 0.01, 1e-3)
        rtol = max(2 * TOLERANCE[dtype], 1e-6)
        torch.testing.assert_close(p.grad.double(), expected, rtol=rtol, atol=1e-8)


@st.composite
def pairs(draw):
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    exponents = st.integers(-2, 2) if dtype == torch.float16 else st.integers(-20, 20)
    scales = [10.0 ** draw(exponents) for _ in range(2)]
    weight, grad = (randn(shape, dtype, i, scale) for i, scale in enumerate(scales))
    if len(shape) > 1 and draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        weight, grad = weight.permute(order), grad.permute(order)
    return parameter(weight, grad)


@given(st.lists(pairs(), max_size=5), st.sampled_from([0.01, 1.0]))
@settings(max_examples=100, deadline=None)
def test_any_list_strategy(parameters, clipping):
    if native.core is None:
        return
    _, rest = native.core.clip_units(parameters, 1e30, 1.0)
    check([p for p in parameters if not any(p is q for q in rest)], clipping)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("isa", ["baseline", "v3", "v4"])
def test_every_instruction_set_level_agrees(isa):
    """Runs this file's tests against float64 at the level (or the best one below it here)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        [*command, "-k", "strategy"],
        env={**os.environ, "FASTCLIP_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout
