"""The CUDA kernel of unit_clip without a device: see tests/grad_norm/test_grad_norm_cuda.py."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from cuda_on_host.kernels import Kernels, guarded, randn

from fastclip.ops.unit_clip.reference import clip_units_ref_

F32, BF16, F16 = DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAGE, OLD_PAGE = 1361, 167  # pairs in one launch; where the driver is older than CUDA 12.1


def pair(units: int, size: int, dtype: torch.dtype, seed: int = 0):
    weight, grad = (randn(units * size, dtype, seed=2 * seed + i) for i in range(2))
    return weight.view(units, size), grad.view(units, size)


def expected(weight: torch.Tensor, grad: torch.Tensor, clipping: float, eps: float = 1e-3):
    clipped = grad.clone()
    clip_units_ref_(weight, clipped, clipping, eps)
    return clipped


def compare(found: torch.Tensor, wanted: torch.Tensor) -> None:
    rtol = torch.finfo(found.dtype).eps + 3e-7
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 9, 511, 513, 2048, 2049, 4097, 9001])
def test_every_size_dtype_and_alignment(kernels, size, dtype):
    weight, grad = pair(3, size, dtype, seed=size)
    items = 16 // grad.element_size()
    for offset in range(items) if size < 600 else (0, 1, items - 1):
        (w, _), (g, memory) = guarded(weight.flatten(), 1), guarded(grad.flatten(), offset)
        kernels.clip_units_([(w.view_as(weight), g.view_as(grad))], 0.01)
        compare(g.view_as(grad), expected(weight, grad, 0.01))
        assert memory.isnan().sum() == memory.numel() - grad.numel()  # nothing written outside


@pytest.mark.parametrize("size", [20, 10_000])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("value", [2e22, 3e37, 1e-30, 1e-38])
def test_squares_that_leave_float32(kernels, value, dtype, size):
    weight, grad = pair(4, size, dtype)
    for w, g in ((weight, grad * value), (weight * value, grad)):
        clipped = g.clone()
        kernels.clip_units_([(w, clipped)], 0.5, 0.0)
        wanted = expected(w, g, 0.5, 0.0)
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        rtol = torch.finfo(dtype).eps + 3e-7
        torch.testing.assert_close(clipped, wanted, rtol=rtol, atol=least)


def test_equal_values_do_not_drift(kernels):
    weight, grad = torch.full((1, 300_000), 0.1), torch.full((1, 300_000), 0.3)
    wanted = expected(weight.double(), grad.double(), 0.01)
    kernels.clip_units_([(weight, grad)], 0.01)
    torch.testing.assert_close(grad.double(), wanted, rtol=2e-7, atol=0)


def test_any_grid_and_any_order_of_blocks_and_threads(cuda_kernels):
    shapes = [(300, 70, F32), (3, 20_000, BF16), (1, 5, F16), (1, 9000, F32), (40, 1, BF16)]
    runs = []
    for device, (multiprocessors, blocks_each) in enumerate([(1, 1), (2, 3), (40, 4)]):
        kernels = Kernels(cuda_kernels)
        kernels.device(multiprocessors, blocks_each, seed=device)
        # The resident blocks are asked for once per device, so each grid gets one of its own.
        pairs = [pair(*shape, seed=i) for i, shape in enumerate(shapes)]
        kernels.clip_units_(pairs, 0.01, device_index=40 + device)
        assert cuda_kernels.launches() == 1
        assert cuda_kernels.last_grid() == multiprocessors * blocks_each
        runs.append([grad for _, grad in pairs])
    for i, shape in enumerate(shapes):
        compare(runs[0][i], expected(*pair(*shape, seed=i), 0.01))
    for run in runs:
        assert all(map(torch.equal, runs[0], run))  # to the last bit


@pytest.mark.parametrize(
    ("count", "driver", "page"),
    [(n, 13000, PAGE) for n in (OLD_PAGE + 1, PAGE, PAGE + 1)]
    + [(n, 12000, OLD_PAGE) for n in (OLD_PAGE, OLD_PAGE + 1, 2 * OLD_PAGE)],
)
def test_lists_over_one_page(kernels, count, driver, page):
    kernels.library.set_driver(driver)
    pairs = [pair(1 + i % 3, 1 + i % 5, DTYPES[i % 3], seed=i) for i in range(count)]
    wanted = [expected(weight, grad, 0.02) for weight, grad in pairs]
    kernels.clip_units_(pairs, 0.02)
    assert kernels.library.launches() == math.ceil(count / page)
    for (_, grad), clipped in zip(pairs, wanted, strict=True):
        compare(grad, clipped)
    kernels.clip_units_([], 0.02)


LISTS = {
    "one": [(1, 1, F32)],
    "short": [(1000, 3, F32), (1, 17, BF16), (1, 1, F16), (333, 2048, F32), (7, 4096, BF16)],
    "long": [(100, 2049, F32), (3, 1 << 20, F16), (2, 4097, BF16)],
    "both": [
        (5, 10, F32),
        (9, 5000, F32),
        (1, 64, F32),
        (1, 64, F32),
        (2, 70_000, BF16),
        (90, 9, F16),
    ],
    "past 2^31 elements": [(1, 3, F32), (40, 1 << 28, F32), (20, 1 << 28, BF16), (2, 3, F16)],
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("grid", [1, 2, 5, 37, 528])
def test_every_unit_is_walked_once(kernels, name, grid):
    """The addresses alone: the tensors need not exist."""
    pairs = LISTS[name]
    seen = Counter(kernels.walked_units(pairs, grid))
    short = Counter(address for address, warp in seen if warp >= 0)
    long = {(address, warp) for address, warp in seen if warp < 0}
    for p, (units, size, dtype) in enumerate(pairs):
        of_unit = size * dtype.itemsize
        for address in ((p + 1 << 44) + u * of_unit for u in range(units)):
            if of_unit > 8192:
                assert {(address, -1 - warp) for warp in range(8)} <= long
            else:
                assert short.pop(address) == 1
    assert not short
    assert len(long) == 8 * sum(units for units, size, d in pairs if size * d.itemsize > 8192)
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("size", [64, 2048, 4608])
@pytest.mark.parametrize(("count", "units"), [(1, 5280), (1320, 1)])
def test_work_is_shared_out_evenly(kernels, count, units, size):
    """Between the warps of all blocks, or the blocks where units are long."""
    grid = 33
    found = Counter(by for _, by in kernels.walked_units([(units, size, F32)] * count, grid))
    is_long = size * 4 > 8192
    assert len(found) == 8
    assert max(found.values()) - min(found.values()) <= (0 if is_long else grid)


def test_what_the_kernel_refuses(kernels):
    for dtype in DTYPES:
        assert kernels.takes_units(1, 1 << 28, dtype)
        assert not kernels.takes_units(1, (1 << 28) + 1, dtype)
        assert kernels.takes_units(1 << 30, 1, dtype)  # of a cost of 2 each: a page holds them
        assert not kernels.takes_units((1 << 30) + 1, 1, dtype)
        assert not kernels.takes_units(1 << 30, 8192, dtype)
        assert not kernels.takes_units(1 << 62, 1 << 27, dtype)
    assert not kernels.takes_units(4, 4, torch.float64)


def test_a_page_ends_before_its_costs_leave_32_bits(kernels):
    halves = [(1 << 29, 1, F32), (1 << 29, 1, F32)]
    kernels.library.set_host_only(True)
    try:
        for pairs, launches in ((halves, 1), ([*halves, (1, 1, F32)], 2)):
            kernels.device()
            kernels.clip_rows_([(1 << 40, 2 << 40, *one) for one in pairs], 0.01)
            assert kernels.library.launches() == launches
    finally:
        kernels.library.set_host_only(False)
