"""The op grad_norm against float64: accuracy, range, any list of tensors, any thread count."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastclip
from fastclip import native
from fastclip.ops.grad_norm import backends

pytestmark = pytest.mark.core

needs_native = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def exact_norm(tensors, p: float) -> float:
    """In float64, scaled by the largest magnitude so that no power over- or underflows."""
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    scale = flat.abs().max().item() if flat.numel() else 0.0
    if scale == 0 or math.isinf(p) or not math.isfinite(scale):
        return torch.linalg.vector_norm(flat, p).item()
    return torch.linalg.vector_norm(flat / scale, p).item() * scale


@needs_native
@pytest.mark.parametrize("numel", [0, 1, 15, 16, 17, 1023, 1024, 1025, 16384, 16385, 100_003])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 0.5, math.inf])
def test_native_norm_to_1e_6_at_any_size(numel, dtype, p):
    torch.manual_seed(numel)
    x = torch.randn(numel, dtype=torch.float64).to(dtype)
    grads = backends.collect([x], take_grads=False)
    assert grads is not None
    if numel == 0:
        assert math.isinf(p) or grads.norms(p).tolist() == [[0.0]]
        return
    assert grads.norms(p).item() == pytest.approx(exact_norm([x], p), rel=1e-6)


@needs_native
@pytest.mark.parametrize("value", [1.0, 0.1, 3.3333333])
def test_equal_values_do_not_drift(value):
    x = torch.full((3_000_001,), value)
    expected = math.sqrt(x.numel()) * x[0].double().item()
    assert fastclip.get_total_norm([x]).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@needs_native
def test_relative_error_stays_under_1e_6_at_1e8_elements():
    x = torch.randn(100_000_000, generator=torch.Generator().manual_seed(0))
    pieces = x.split(10_000_000)
    exact = math.sqrt(math.fsum(piece.double().square().sum().item() for piece in pieces))
    ours = abs(fastclip.get_total_norm([x]).item() / exact - 1)
    theirs = abs(torch.nn.utils.get_total_norm([x]).item() / exact - 1)
    print(f"relative error at 1e8 elements: fastclip {ours:.1e}, torch {theirs:.1e}")
    assert ours < 1e-6


@needs_native
@pytest.mark.parametrize("value", [2e22, 3e38, 1e-30, 1e-45, 1e-38])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, math.inf])
def test_float32_values_whose_powers_leave_float32(value, p):
    x = torch.full((1000,), value)
    x[::2] *= -1
    got = backends.collect([x], take_grads=False).norms(p).item()
    assert got == pytest.approx(exact_norm([x], p), rel=1e-6)


@needs_native
@pytest.mark.parametrize("value", [1e200, 1e-200, 5e-324])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_float64_values_whose_powers_leave_float64(value, p):
    x = torch.full((1000,), value, dtype=torch.float64)
    got = backends.collect([x], take_grads=False).norms(p).item()
    assert got == pytest.approx(exact_norm([x], p), rel=1e-9)


@needs_native
def test_a_few_large_values_among_many_tiny_ones():
    x = torch.full((100_000,), 1e-25)
    x[::1000] = 1e-10
    assert fastclip.get_total_norm([x]).item() == pytest.approx(exact_norm([x], 2.0), rel=1e-6)


@needs_native
def test_a_half_norm_past_its_range_still_clips_rightly():
    p = torch.nn.Parameter(torch.zeros(100, dtype=torch.float16))
    p.grad = torch.full((100,), 60000.0, dtype=torch.float16)
    assert fastclip.clip_grad_norm_([p], 1.0).isinf()  # 600000 has no half
    assert p.grad.float().norm().item() == pytest.approx(1.0, rel=1e-2)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_norm_is_rounded_once_to_its_dtype(dtype):
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-7, 1e-3, 1.0, 300.0, 30_000.0):
        for _ in range(100):
            x = (torch.randn(3, generator=generator, dtype=torch.float64) * scale).to(dtype)
            total = x.double().abs().sum()  # exact
            assert torch.equal(fastclip.get_total_norm([x], 1.0), total.float().to(dtype))


@needs_native
def test_result_is_independent_of_threads_and_repeats_bit_for_bit():
    torch.manual_seed(0)
    tensors = [torch.randn(n) for n in (1, 1000, 65537, 3_000_001, 5)]
    before = torch.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.add(backends.collect(tensors, take_grads=False)._norm(2.0))
    finally:
        torch.set_num_threads(before)
    assert len(results) == 1


@needs_native
def test_torch_set_num_threads_is_the_cores_too():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert native.core.thread_limits()["used"] == 1
    finally:
        torch.set_num_threads(before)
    assert native.core.thread_limits()["torch"] == before


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("isa", ["baseline", "v3", "v4"])
def test_every_instruction_set_level_agrees(isa):
    """Runs this file's size and range tests at the level (or the best one below it here)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    only = "any_size or powers_leave or drift or strategy"
    result = subprocess.run(
        [*command, "-k", only],
        env={**os.environ, "FASTCLIP_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    exponent = draw(st.integers(-4, 4) if dtype == torch.float16 else st.integers(-37, 37))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * 10.0**exponent
    x = x.to(dtype)
    if x.ndim >= 2:
        x = x.permute(draw(st.permutations(range(x.ndim))))
    if x.ndim and draw(st.booleans()):
        x = x[:: draw(st.integers(1, 3))]
    return x


@given(st.lists(tensors(), min_size=1, max_size=6), st.sampled_from([1.0, 2.0, 3.5, 0.5]))
@settings(max_examples=150, deadline=None)
def test_any_list_of_tensors_strategy(values, p):
    grads = backends.collect(values, take_grads=False)
    got = fastclip.get_total_norm(values, p).double().item()
    expected = exact_norm(values, p) if any(v.numel() for v in values) else 0.0
    result_dtype = fastclip.get_total_norm(values, p).dtype
    limits = torch.finfo(result_dtype)
    if grads is None or not limits.tiny < expected < limits.max:
        return  # torch's own arithmetic, or a result that the dtype cannot hold
    assert got == pytest.approx(expected, rel=max(1e-6, limits.eps))


@given(st.lists(tensors(), min_size=1, max_size=4), st.floats(1e-3, 1e3))
@settings(max_examples=100, deadline=None)
def test_clipping_any_list_against_float64_strategy(values, limit):
    parameters = []
    for value in values:
        p = torch.nn.Parameter(torch.zeros(value.shape, dtype=value.dtype))
        p.grad = value
        parameters.append(p)
    if backends.collect(values, take_grads=False) is None:
        return
    before = [v.double().clone() for v in values]
    strides = [v.stride() for v in values]
    norm = exact_norm(values, 2.0) if any(v.numel() for v in values) else 0.0
    fastclip.clip_grad_norm_(parameters, limit)
    factor = min(1.0, limit / (norm + 1e-6))
    for p, old, stride in zip(parameters, before, strides, strict=True):
        info = torch.finfo(p.dtype)
        expected = old * factor
        error = (p.grad.double() - expected).abs()
        bound = expected.abs() * max(1e-6, info.eps) + info.smallest_normal * info.eps
        assert (error <= bound).all()
        assert p.grad.stride() == stride
