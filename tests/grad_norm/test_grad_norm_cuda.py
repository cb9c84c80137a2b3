"""The CUDA kernels of grad_norm without a device: their logic on the CPU, and their compilation.

The same source runs against a small stand-in for the CUDA runtime (tests/cuda_on_host). What that
cannot show, races and speed, is left to the tests marked gpu.
"""

from __future__ import annotations

import math

import pytest
import torch
from cuda_on_host import DTYPES
from cuda_on_host.kernels import Kernels, guarded, randn
from test_grad_norm import exact_norm

PAGE, OLD_PAGE = 2040, 250  # tensors in one launch; where the driver is older than CUDA 12.1
NORMS = (1.0, 2.0, math.inf)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 7, 8, 9, 1023, 1024, 1025, 16385, 70_001])
def test_norm_of_every_size_dtype_and_alignment(kernels, numel, dtype, p):
    x = randn(numel, dtype, seed=numel)
    items = 16 // x.element_size()
    for offset in range(items) if numel < 2000 else (0, 1, items - 1):
        view, memory = guarded(x, offset)
        found = kernels.norm([view], p)
        expected = pytest.approx(exact_norm([x], p), rel=2e-7)
        assert found["norm"] == found["total"].item() == expected  # NaN had it read outside
        assert found["norms"].item() == found["each_norm"] == expected
        kernels.scale_([view], found["norm"] / 2, torch.tensor(found["norm"], dtype=torch.float64))
        wide = x.double() if dtype == torch.float64 else x.float()
        factor = found["norm"] / 2 / (found["norm"] + 1e-6)
        scaled = (wide * torch.tensor(factor, dtype=wide.dtype)).to(dtype)
        assert torch.equal(view, scaled)
        assert memory.isnan().sum() == memory.numel() - numel  # nothing written outside


@pytest.mark.parametrize("p", NORMS)
def test_mixed_dtypes_and_empty_tensors_take_one_launch(kernels, p):
    sizes = [0, 3, 40_000, 0, 0, 17, 1, 100_000, 33, 0]
    tensors = [randn(n, DTYPES[i % 4], seed=i) for i, n in enumerate(sizes)]
    found = kernels.norm(tensors, p)
    assert kernels.library.launches() == 2  # one with, one without the norm of each
    assert found["norm"] == pytest.approx(exact_norm(tensors, p), rel=2e-7)
    for norm, tensor in zip(found["norms"].tolist(), tensors, strict=True):
        assert norm == pytest.approx(exact_norm([tensor], p) if tensor.numel() else 0, rel=2e-7)


@pytest.mark.parametrize(
    ("count", "driver", "page"),
    [(n, 13000, PAGE) for n in (OLD_PAGE + 1, PAGE, PAGE + 1, 5000)]
    + [(n, 12000, OLD_PAGE) for n in (OLD_PAGE - 1, OLD_PAGE, OLD_PAGE + 1, 2 * OLD_PAGE, PAGE)],
)
@pytest.mark.slow
def test_lists_over_one_page(kernels, count, driver, page):
    kernels.library.set_driver(driver)
    tensors = [randn(1 + i % 5, DTYPES[i % 4], seed=i) for i in range(count)]
    before = [t.double().clone() for t in tensors]
    found = kernels.norm(tensors)
    assert kernels.library.launches() == 2 * math.ceil(count / page)
    assert found["norm"] == pytest.approx(exact_norm(tensors, 2.0), rel=2e-7)
    each = torch.stack([t.norm() for t in before])
    torch.testing.assert_close(found["norms"], each, rtol=1e-6, atol=0)
    kernels.scale_(tensors, found["norm"] / 4, found["norm"])
    for tensor, old in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor.double(), old / 4, rtol=1e-2, atol=1e-6)


def test_no_tensors_have_norm_zero(kernels):
    assert kernels.norm([])["norm"] == 0
    assert kernels.norm([torch.empty(0)])["each_norm"] == 0
    kernels.scale_([], 1.0, 2.0)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (40, 8)])
def test_any_grid_and_any_order_of_blocks_and_threads(cuda_kernels, grid):
    tensors = [randn(n, torch.float32, seed=n) for n in (300_000, 5, 9000)]
    library_norms = set()
    for seed in range(3):
        kernels = Kernels(cuda_kernels)
        kernels.device(*grid, seed=seed)
        # The resident blocks are asked for once per device, so each grid gets one of its own.
        found = kernels.norm(tensors, device_index=1 + grid[0])
        assert cuda_kernels.last_grid() <= grid[0] * grid[1]
        assert cuda_kernels.tickets_in_use() == 0
        library_norms.add((found["norm"], found["each_norm"], *found["norms"].tolist()))
    assert len(library_norms) == 1  # to the last bit
    assert library_norms.pop()[0] == pytest.approx(exact_norm(tensors, 2.0), rel=2e-7)
    assert cuda_kernels.current_device() == 0  # the caller's device is current again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [2e22, 3e38, 1e-30, 1e-38, 1e-40])
@pytest.mark.parametrize("p", NORMS)
def test_squares_that_leave_float32(kernels, value, dtype, p):
    x = randn(50_000, torch.float64) * value
    x = x.clamp(-3.3e38, 3.3e38).to(dtype)
    assert kernels.norm([x], p)["norm"] == pytest.approx(exact_norm([x], p), rel=3e-7)


def test_huge_ordinary_and_tiny_values_together(kernels):
    x = torch.cat([randn(5000, torch.float32) * s for s in (1e-38, 1e-20, 1.0, 1e10)])
    each = list(x.split(5000))
    found = kernels.norm(each)
    for norm, part in zip(found["norms"].tolist(), each, strict=True):
        assert norm == pytest.approx(exact_norm([part], 2.0), rel=3e-7)
    assert found["norm"] == pytest.approx(exact_norm([x], 2.0), rel=3e-7)


def test_equal_values_do_not_drift(kernels):
    x = torch.full((1_000_001,), 0.1)
    expected = math.sqrt(x.numel()) * x[0].double().item()
    assert kernels.norm([x])["norm"] == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("where", [0, 3, 999, 20_000])
def test_nonfinite_values_are_never_lost(kernels, dtype, p, where):
    x = randn(20_001, dtype)
    clean = x.clone()
    x[where] = -math.inf
    found = kernels.norm([clean, x], p, max_norm=1.0)
    assert found["norm"] == math.inf == found["total"].item()
    assert found["factor"] == 0
    assert found["norms"].isfinite().tolist() == [True, False]
    x[where] = math.nan
    found = kernels.norm([clean, x, clean], p, max_norm=1.0)
    assert math.isnan(found["norm"])
    assert math.isnan(found["factor"])
    assert found["norms"].isnan().tolist() == [False, True, False]
    kernels.scale_([clean], 1.0, found["norm"])
    assert clean.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_in_the_dtype_asked_for(kernels, dtype):
    x = [torch.full((100,), 0.3)]
    exact = math.sqrt(100) * x[0][0].double().item()
    found = kernels.norm(x, max_norm=1.0, total_dtype=dtype)
    assert found["total"] == torch.tensor(found["norm"], dtype=torch.float64).to(dtype)
    assert found["norm"] == pytest.approx(exact, rel=1e-7)
    assert found["factor"] == pytest.approx(1 / (exact + 1e-6), rel=1e-7)
    scaled = x[0].clone()
    kernels.scale_([scaled], 1.0, found["total"])  # a norm of any dtype is read on the device
    torch.testing.assert_close(scaled, x[0] / (found["total"].float() + 1e-6), rtol=1e-6, atol=0)
