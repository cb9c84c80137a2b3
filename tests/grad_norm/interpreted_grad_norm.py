"""Triton's kernels of grad_norm on the CPU. Run by test_grad_norm_triton.py, TRITON_INTERPRET=1."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

from fastclip.kernels.grad_norm.launch import LONG, SHORT
from fastclip.ops.grad_norm import backends, part, parts
from fastclip.ops.grad_norm.gpu.triton import TritonGrads
from fastclip.ops.grad_norm.tensor_list import DTYPES, PythonTensorList

NORMS = (1.0, 2.0, math.inf)
ORDERS = (-math.inf, -1.0, 0.5, 1.5, 3.0, 4.0)  # the other ones
SIZES = [1, 1023, 1024, 1025, LONG.chunk - 1, LONG.chunk, LONG.chunk + 1, 30_000]


def grads_of(tensors) -> TritonGrads:
    return TritonGrads(PythonTensorList(tensors, False))


def randn(numel: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype)


def exact_norm(tensors, p: float) -> float:
    flat = torch.cat([t.double().flatten() for t in tensors])
    largest = flat.abs().max().item() if flat.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return torch.linalg.vector_norm(flat, p).item()
    return torch.linalg.vector_norm(flat / largest, p).item() * largest


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", SIZES)
def test_norm_and_scaling_of_every_size_dtype_and_alignment(numel, dtype, p):
    x = randn(numel, dtype, seed=numel)
    for offset in (0, 1):
        memory = torch.full((numel + 32,), math.nan, dtype=dtype)
        start = -memory.data_ptr() % 16 // x.element_size() + offset
        view = memory[start : start + numel].copy_(x)
        grads = grads_of([view])
        norm = exact_norm([x], p)
        assert grads.norms(p).item() == pytest.approx(norm, rel=3e-7)
        found = grads.clip_(norm / 2, p)
        assert found.dtype == dtype
        # The interpreter cuts bfloat16 off where a device rounds to nearest.
        tolerance = torch.finfo(dtype).eps + 3e-7
        assert found.item() == pytest.approx(norm, rel=tolerance)
        scaled = (x.double() * (norm / 2 / (norm + 1e-6))).to(dtype)
        torch.testing.assert_close(view, scaled, rtol=tolerance, atol=0)
        assert memory.isnan().sum() == memory.numel() - numel


@pytest.mark.parametrize("p", NORMS)
def test_mixed_dtypes_and_empty_tensors(p):
    sizes = [0, 3, 20_000, 0, 17, 1, 9000, 0]
    tensors = [randn(n, DTYPES[i % 4], seed=i) for i, n in enumerate(sizes)]
    grads = grads_of(tensors)
    assert grads.has_norm(p) == (p != math.inf)
    for found, tensor in zip(grads.norms(p)[0].tolist(), tensors, strict=True):
        assert found == pytest.approx(exact_norm([tensor], p) if tensor.numel() else 0, rel=3e-7)
    exact = exact_norm(tensors, p)
    assert grads.total_norm(p).item() == pytest.approx(exact, rel=3e-7)
    before = [t.clone() for t in tensors]
    assert grads.clip_(exact / 3, p).item() == pytest.approx(exact, rel=3e-7)  # of the known norm
    for old, new in zip(before, tensors, strict=True):
        torch.testing.assert_close(new, old / 3, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [2e22, 1e-30, 1e-40])
@pytest.mark.parametrize("p", NORMS)
def test_squares_that_leave_float32(value, dtype, p):
    x = (randn(20_000, torch.float64) * value).to(dtype)
    assert grads_of([x]).norms(p).item() == pytest.approx(exact_norm([x], p), rel=3e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", NORMS)
def test_nonfinite_values_are_never_lost(dtype, p):
    clean, x = randn(9000, dtype), randn(9000, dtype)
    x[8999] = -math.inf
    assert grads_of([clean, x]).total_norm(p).item() == math.inf
    x[1] = math.nan
    grads = grads_of([clean, x])
    assert grads.norms(p).isnan().tolist() == [[False, True]]
    assert math.isnan(grads.clip_(1.0, p).item())
    assert clean.isnan().all()


def test_factor_of_one_writes_nothing():
    x = torch.empty(9000)
    x.view(torch.int32).fill_(0x7F80_0001)  # any write would be seen in this NaN's payload
    grads_of([x]).clip_by_(1.0, torch.tensor(0.5))
    grads_of([x]).clip_by_(math.inf, torch.tensor(3.0, dtype=torch.bfloat16))
    assert (x.view(torch.int32) == 0x7F80_0001).all()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, 0.1])
def test_factor_is_double_precision(max_norm):
    x = randn(100, torch.float64)
    expected = x * (max_norm / (2.0 + 1e-6))
    grads_of([x]).clip_by_(max_norm, torch.tensor(2.0))
    torch.testing.assert_close(x, expected, rtol=1e-15, atol=0)


def test_a_norm_and_its_factor():
    x = [torch.full((100,), 0.3)]
    total, factor = grads_of(x).norm_and_factor(1.0, 2.0)
    assert total.item() == pytest.approx(3.0)
    assert factor.item() == pytest.approx(1 / (3.0 + 1e-6))
    x[0][5] = math.inf
    assert [t.item() for t in grads_of(x).norm_and_factor(1.0, 2.0)] == [math.inf, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", ORDERS)
def test_every_order(p, dtype):
    tensors = [randn(n, dtype, seed=n) for n in (1, 700, SHORT.chunk + 1, 9001)]
    grads = grads_of(tensors)
    for found, tensor in zip(grads.norms(p)[0].tolist(), tensors, strict=True):
        exact = torch.linalg.vector_norm(tensor.double(), p).item()
        assert found == pytest.approx(exact, rel=1e-10)
    exact = torch.linalg.vector_norm(torch.cat([t.double() for t in tensors]), p).item()
    before = [t.clone() for t in tensors]
    assert grads.exact_norm(p).item() == pytest.approx(exact, rel=1e-10)
    grads_of(tensors).clip_(exact / 2, p)
    tolerance = torch.finfo(dtype).eps + 3e-7
    factor = min(1.0, exact / 2 / (exact + 1e-6))
    for old, new in zip(before, tensors, strict=True):
        expected = (old.double() * factor).to(dtype)
        torch.testing.assert_close(new, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("p", [-40.0, 20.0])
@pytest.mark.parametrize("size", [1e-290, 1.0, 1e290])
def test_powers_past_float64_are_of_quotients(p, size):
    x = (randn(3000, torch.float64).abs() + 0.1) * size
    unit = x.max() if p > 0 else x.min()
    exact = torch.linalg.vector_norm(x / unit, p).item() * unit.item()
    assert grads_of([x]).norms(p).item() == pytest.approx(exact, rel=1e-10)
    assert grads_of([x, x.clone()]).exact_norm(p).item() == pytest.approx(
        exact * 2 ** (1 / p), rel=1e-10
    )


@pytest.mark.parametrize("p", [3.0, -1.0, -math.inf])
def test_zeros_infinities_and_nan_of_any_order(p):
    for values in ([0.0, 1.0], [math.inf, 1.0], [math.nan, 1.0], [0.0, 0.0], [-2.0, math.inf]):
        x = torch.tensor(values * 700)
        exact = torch.linalg.vector_norm(x.double(), p).item()
        assert grads_of([x]).norms(p).item() == pytest.approx(exact, rel=1e-10, nan_ok=True)


def test_many_short_tensors_and_a_program_for_each_run():
    sizes = [1 + 37 * i % 90 for i in range(300)]
    tensors = [randn(n, DTYPES[i % 4], seed=i) for i, n in enumerate(sizes)]
    each = torch.stack([t.double().norm() for t in tensors])
    torch.testing.assert_close(grads_of(tensors).norms(2.0)[0], each, rtol=1e-6, atol=0)
    assert grads_of(tensors).total_norm(2.0).item() == pytest.approx(each.norm().item(), rel=3e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiplying_by_a_number_and_each_by_its_own(dtype):
    for n in (1, 1025, 9001):
        x, y = randn(n, dtype), randn(n, dtype, seed=1)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        expected = [(t.to(wide) * torch.tensor(0.37, dtype=wide)).to(dtype) for t in (x, y)]
        grads_of([x]).scale_(torch.tensor(0.37))
        tolerance = torch.finfo(dtype).eps + 3e-7
        torch.testing.assert_close(x, expected[0], rtol=tolerance, atol=0)
        kept = x.clone()
        grads_of([x, y]).scale_each_(torch.tensor([1.0, 0.37], dtype=torch.float64))
        assert torch.equal(x, kept)
        torch.testing.assert_close(y, expected[1], rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0.0, 0.1, 1.5, math.inf])
def test_clamping_of_every_dtype(dtype, limit):
    for n in (1, 1025, 9001):
        x = randn(n, dtype)
        x[0], x[-1] = math.inf, math.nan
        expected = x.clamp(-limit, limit)
        grads_of([x]).clamp_(limit)
        # The interpreter cuts bfloat16 off where a device rounds to nearest.
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(x, expected, rtol=tolerance, atol=0, equal_nan=True)


def test_versions_of_scaled_gradients_move():
    x = randn(10, torch.float32)
    before = x._version
    grads_of([x]).clip_(0.1, 2.0)
    assert x._version > before


def test_equal_runs_are_bit_equal():
    tensors = [randn(30_000, torch.float32), randn(5, torch.bfloat16)]
    found = {grads_of(tensors).total_norm(2.0).item() for _ in range(3)}
    assert len(found) == 1


@pytest.mark.parametrize("p", [*NORMS, 3.0])
def test_a_part_beside_another_owners(p):
    """As a list on two devices: the CPU's backend, and Triton's where a tensor comes up again."""
    x, y, z = randn(9000, torch.float32), randn(700, torch.bfloat16), randn(50, torch.float64)

    def own(tensors):
        try:
            return grads_of(tensors)
        except NotImplementedError:
            return None

    device = torch.device("cpu")
    first, second = part.Part(device, None), part.Part(device, None)
    first.add([1], [z], [z], [], 2)
    second.add([0, 2], [x, y], [x, y], [], 5)
    first.share([z], backends._backend_of)
    assert second.share([x, y], own)
    grads = parts.GradParts([first, second], own)
    exact = exact_norm([x, y, z], p)
    assert grads.total_norm(p).item() == pytest.approx(exact, rel=3e-7)
    for found, tensor in zip(grads.norms(p)[0].tolist(), (x, z, y), strict=True):
        assert found == pytest.approx(exact_norm([tensor], p), rel=3e-7)
    before = [t.clone() for t in (x, y, z)]
    assert grads.clip_(exact / 3, p).dtype == torch.float64
    for old, new in zip(before, (x, y, z), strict=True):
        torch.testing.assert_close(new, old / 3, rtol=1e-2 if new is y else 1e-5, atol=0)
