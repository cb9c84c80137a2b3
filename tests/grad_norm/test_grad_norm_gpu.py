"""grad_norm by the backends of a GPU: CUDA and Triton there, and CUDA's whole path on the CPU.

The path on the CPU (tests/cuda_on_host) is the same Python, entries and kernels, run by a stand-in
for the CUDA runtime. The backends on a device are pytest.mark.gpu: see conftest.
"""

from __future__ import annotations

import math

import pytest
import torch
from gpu_backend import DTYPES, NORMS, exact_norm

import fastclip
from fastclip.ops.grad_norm.gpu import backend as gpu


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 1023, 1025, 8192, 16385, 3_000_001])
def test_norm_and_scaling_of_every_size_dtype_and_alignment(backend, numel, dtype, p):
    if backend.device == "cpu":
        numel = min(numel, 100_001)  # fibers are slow; still several chunks for every block
    x = backend.randn(numel, dtype, seed=numel)
    for offset in (0, 1, 3):
        memory = torch.full((numel + 64,), math.nan, device=backend.device, dtype=dtype)
        view = memory[16 + offset : 16 + offset + numel].copy_(x)
        exact = exact_norm([x], p)
        grads = backend.collect([view])
        assert isinstance(grads, gpu.GpuGrads)
        assert grads.norms(p).item() == pytest.approx(exact, rel=5e-7)
        grads.clip_(exact / 2, p)
        expected = (x.double() * (exact / 2 / (exact + 1e-6))).to(dtype)
        torch.testing.assert_close(view, expected, rtol=torch.finfo(dtype).eps + 5e-7, atol=0)
        assert memory.isnan().sum() == memory.numel() - numel


@pytest.mark.parametrize("value", [2e22, 1e-30, 1e-40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_that_leave_float32(backend, dtype, value):
    x = (backend.randn(100_000, torch.float64) * value).to(dtype)
    assert backend.collect([x]).norms(2.0).item() == pytest.approx(exact_norm([x]), rel=5e-7)


@pytest.mark.parametrize("count", [1, 382, 2041, 10_000])
def test_lists_of_any_length(backend, count):
    tensors = [backend.randn(1 + i % 700, DTYPES[i % 4], seed=i) for i in range(count)]
    grads = backend.collect(tensors)
    exact = torch.stack([t.double().norm() for t in tensors])
    torch.testing.assert_close(grads.norms(2.0)[0], exact, rtol=5e-7, atol=0)
    assert grads.total_norm(2.0).item() == pytest.approx(exact.norm().item(), rel=5e-7)
    grads.clip_(exact.norm().item() / 2, 2.0)
    assert exact_norm(tensors) == pytest.approx(exact.norm().item() / 2, rel=1e-3)


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9, math.inf])
@pytest.mark.parametrize("dtypes", [DTYPES[:1], DTYPES[2:3], DTYPES])
def test_clip_grad_norm_as_float64_has_it(backend, dtypes, max_norm):
    ours = backend.parameters(dtypes)
    before = [p.grad.clone() for p in ours]
    exact = exact_norm(before)
    fastclip.clip_grad_norm_(ours, max_norm)  # warm
    for p, g in zip(ours, before, strict=True):
        p.grad.copy_(g)
    with backend.quiet():
        norm = fastclip.clip_grad_norm_(ours, max_norm)
    assert norm.item() == pytest.approx(exact, rel=torch.finfo(norm.dtype).eps + 1e-6)
    factor = min(1.0, max_norm / (exact + 1e-6))
    for p, g in zip(ours, before, strict=True):
        expected = (g.double() * factor).to(g.dtype)
        rtol = torch.finfo(g.dtype).eps + 1e-6
        torch.testing.assert_close(p.grad, expected, rtol=rtol, atol=0)
        assert factor < 1 or torch.equal(p.grad, g)


def test_a_known_norm_on_the_device_needs_no_wait(backend):
    ours = backend.parameters()
    total = fastclip.get_total_norm([p.grad for p in ours])
    exact = exact_norm([p.grad for p in ours])
    fastclip.clip_grads_with_norm_(ours, math.inf, total)
    with backend.quiet():
        fastclip.clip_grads_with_norm_(ours, 1.0, total)
    assert exact_norm([p.grad for p in ours]) == pytest.approx(1.0, rel=1e-2)
    fastclip.clip_grads_with_norm_(ours, exact / 2, torch.tensor(exact))
    assert exact_norm([p.grad for p in ours]) == pytest.approx(0.5, rel=1e-2)


def test_nonfinite_gradients_raise_before_any_changes(backend):
    ours = backend.parameters()
    ours[2].grad[7] = math.nan
    before = [p.grad.clone() for p in ours]
    with pytest.raises(RuntimeError, match=r"non-finite.*gradients 2 of 7"):
        fastclip.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    for p, g in zip(ours, before, strict=True):
        assert torch.equal(p.grad, g) or p is ours[2]
    assert math.isnan(fastclip.clip_grad_norm_(ours, 1.0).item())
    assert all(p.grad.isnan().all() for p in ours)


def test_a_norm_and_its_factor_without_a_wait(backend):
    grads = backend.collect([p.grad for p in backend.parameters()])
    grads.norm_and_factor(1.0, 2.0)
    with backend.quiet():
        total, factor = grads.norm_and_factor(1.0, 2.0)
    assert factor.item() == pytest.approx(1 / (grads.exact_norm(2.0).item() + 1e-6), rel=1e-12)
    assert total.item() == pytest.approx(1 / factor.item(), rel=1e-5)


def test_equal_runs_are_bit_equal(backend):
    tensors = [
        backend.randn(5_000_003, seed=1),
        backend.randn(77, torch.bfloat16),
        backend.randn(900_000, torch.float16),
    ]
    runs = [
        (backend.collect(tensors).total_norm(2.0), backend.collect(tensors).norms(2.0))
        for _ in range(3 if backend.device == "cpu" else 50)  # a device has races to lose
    ]
    assert len({total.item() for total, _ in runs}) == 1
    assert all(torch.equal(each, runs[0][1]) for _, each in runs)


@pytest.mark.parametrize("p", [3.0, 0.5, -math.inf, -1.0, 6.0])
@pytest.mark.parametrize("dtypes", [DTYPES[:1], DTYPES])
def test_other_orders_are_the_kernels_too(backend, p, dtypes):
    ours = backend.parameters(dtypes)
    before = [p.grad.clone() for p in ours]
    exact = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in before]), p).item()
    grads = backend.collect(before)
    assert isinstance(grads, gpu.GpuGrads)
    assert grads.has_norm(p)
    assert grads.exact_norm(p).item() == pytest.approx(exact, rel=1e-9)
    fastclip.clip_grad_norm_(backend.parameters(dtypes), exact / 2, p)  # warm
    with backend.quiet():
        norm = fastclip.clip_grad_norm_(ours, exact / 2, p)
    assert norm.item() == pytest.approx(exact, rel=1e-6)
    factor = min(1.0, exact / 2 / (exact + 1e-6))
    for q, g in zip(ours, before, strict=True):
        rtol = torch.finfo(g.dtype).eps + 1e-6
        torch.testing.assert_close(q.grad, (g.double() * factor).to(g.dtype), rtol=rtol, atol=0)


def test_order_0_is_torchs(backend):
    ours, theirs = backend.parameters(DTYPES[:1]), backend.parameters(DTYPES[:1])
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.1, 0.0)
    torch.testing.assert_close(fastclip.clip_grad_norm_(ours, 0.1, 0.0), expected)


def test_versions_of_clipped_gradients_move(backend):
    p = torch.nn.Parameter(backend.randn(40))
    p.grad = backend.randn(40, seed=1)
    square = (p.grad * p).square().sum()  # saves the gradient for its own backward
    before = p.grad._version
    fastclip.clip_grad_norm_([p], 0.1)
    assert p.grad._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@pytest.mark.parametrize("p", NORMS)
def test_every_norm_of_a_report(backend, p):
    named = {f"p{i}": parameter for i, parameter in enumerate(backend.parameters())}
    report = fastclip.grad_norms(named.items(), p)
    assert report.total == pytest.approx(exact_norm([q.grad for q in named.values()], p), rel=1e-6)
    for name, norm in report.per_parameter.items():
        assert norm == pytest.approx(exact_norm([named[name].grad], p), rel=1e-6)
