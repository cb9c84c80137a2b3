"""The CUDA kernels of grad_norm without a device: their logic on the CPU, and their compilation.

The same source runs against a small stand-in for the CUDA runtime (tests/cuda_on_host). What that
cannot show, races and speed, is left to the tests marked gpu.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_host import DTYPES, Kernels, build
from test_grad_norm import exact_norm

from fastclip import native

CSRC = Path(__file__).parents[2] / "csrc"
CHUNK_BYTES = 32 * 1024
PAGE, OLD_PAGE = 2040, 250  # tensors in one launch; where the driver is older than CUDA 12.1
NORMS = (1.0, 2.0, math.inf)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return build(tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def kernels(library):
    yield Kernels(library)
    library.set_driver(13000)


def randn(numel: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype)


def guarded(x: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(a copy of x at `offset` elements past a 16-byte boundary, the NaN-filled memory round it)"""
    memory = torch.full((x.numel() + 64,), math.nan, dtype=x.dtype)
    start = -memory.data_ptr() % 16 // x.element_size() + 16 + offset
    view = memory[start : start + x.numel()]
    view.copy_(x)
    return view, memory


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
def test_any_grid_and_any_order_of_blocks_and_threads(library, grid):
    tensors = [randn(n, torch.float32, seed=n) for n in (300_000, 5, 9000)]
    library_norms = set()
    for seed in range(3):
        kernels = Kernels(library)
        kernels.device(*grid, seed=seed)
        # The resident blocks are asked for once per device, so each grid gets one of its own.
        found = kernels.norm(tensors, device_index=1 + grid[0])
        assert library.last_grid() <= grid[0] * grid[1]
        assert library.tickets_in_use() == 0
        library_norms.add((found["norm"], found["each_norm"], *found["norms"].tolist()))
    assert len(library_norms) == 1  # to the last bit
    assert library_norms.pop()[0] == pytest.approx(exact_norm(tensors, 2.0), rel=2e-7)
    assert library.current_device() == 0  # the caller's device is current again


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
    assert found["found_inf"] == 1
    assert found["norms"].isfinite().tolist() == [True, False]
    x[where] = math.nan
    found = kernels.norm([clean, x, clean], p, max_norm=1.0)
    assert math.isnan(found["norm"])
    assert math.isnan(found["factor"])
    assert found["norms"].isnan().tolist() == [False, True, False]
    assert found["found_inf"] == found["each_found_inf"] == 1
    kernels.scale_([clean], 1.0, found["norm"])
    assert clean.isnan().all()


def test_infinite_norm_zeroes_all_but_the_infinite(kernels):
    x = torch.tensor([1.0, math.inf, -2.0])
    kernels.scale_([x], 1.0, kernels.norm([x])["norm"])
    assert x.isnan().tolist() == [False, True, False]
    assert x[0] == x[2] == 0


def test_factor_of_one_writes_nothing(kernels):
    x = torch.full((40_000,), math.nan)  # any write would be seen in its payload
    x.view(torch.int32).fill_(0x7F80_0001)
    kernels.scale_([x], 1.0, 0.5)
    kernels.scale_([x], math.inf, torch.tensor(3.0))
    assert (x.view(torch.int32) == 0x7F80_0001).all()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, 0.5])
def test_max_norm_of_zero_and_below(kernels, max_norm):
    x = randn(100, torch.float32)
    expected = x * (max_norm / (2.0 + 1e-6))
    kernels.scale_([x], max_norm, 2.0)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_in_the_dtype_asked_for(kernels, dtype):
    x = [torch.full((100,), 0.3)]
    exact = math.sqrt(100) * x[0][0].double().item()
    found = kernels.norm(x, max_norm=1.0, total_dtype=dtype)
    assert found["total"] == torch.tensor(found["norm"], dtype=torch.float64).to(dtype)
    assert found["norm"] == pytest.approx(exact, rel=1e-7)
    assert found["factor"] == pytest.approx(1 / (exact + 1e-6), rel=1e-7)
    assert found["inverse"] == pytest.approx(exact, rel=1e-6)
    assert found["found_inf"] == 0
    scaled = x[0].clone()
    kernels.scale_([scaled], 1.0, found["total"])  # a norm of any dtype is read on the device
    torch.testing.assert_close(scaled, x[0] / (found["total"].float() + 1e-6), rtol=1e-6, atol=0)


def test_tensors_of_over_2_to_the_31_elements(kernels):
    numel = [5, (1 << 33) + 3, 0, 7]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float64]
    step = CHUNK_BYTES // 2
    chunks = (1 << 33) // step + 1
    assert kernels.find(numel, dtypes, 0) == (1 << 40, 5, chunks + 2)
    assert kernels.find(numel, dtypes, 1) == (2 << 40, step, chunks + 2)
    last = (2 << 40) + (chunks - 1) * CHUNK_BYTES
    assert kernels.find(numel, dtypes, chunks) == (last, 3, chunks + 2)
    assert kernels.find(numel, dtypes, chunks + 1) == (4 << 40, 7, chunks + 2)


def test_captured_launches_own_their_ticket(library):
    library.set_device(3, 2, 0, True)
    assert Kernels(library).norm([torch.ones(4)])["norm"] == 2
    assert library.tickets_in_use() == 0


def test_the_stand_in_sees_a_barrier_that_a_warp_misses(library):
    assert b"deadlock" in library.run_broken_kernel()


def test_bindings_refuse_tensors_that_are_not_on_a_device():
    if native.core is None:
        pytest.skip(f"no core: {native.why_missing}")
    x = torch.ones(4)
    on_cpu, work = native.core.TensorList([x], False), torch.empty(4096, dtype=torch.float64)
    missing = "without CUDA kernels" in native.core.cuda_why_not(0)
    error, text = (RuntimeError, "without CUDA") if missing else (ValueError, "on a CUDA device")
    with pytest.raises(error, match=text):
        native.core.cuda_grad_norm(on_cpu, 2.0, 1.0, True, work, None, None, None)
    with pytest.raises(error, match=text):
        native.core.cuda_scale_grads(on_cpu, 1.0, 2.0)
    assert (x == 1).all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_no_kernel_spills_or_leaves_registers_for_fewer_than_4_blocks(tmp_path):
    levels = ("80", "90", "100", "120")
    targets = [f"-gencode=arch=compute_{v},code=sm_{v}" for v in levels]
    command = ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", *targets, f"-I{CSRC}", "-c"]
    command += [str(CSRC / "cuda" / "grad_norm.cu"), "-o", str(tmp_path / "grad_norm.o")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", text)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    print(f"registers: {sorted(registers)}")
    assert len(registers) == len(spills) == 2 * 4 * len(levels)  # a small and a large page
    assert set(spills) == {("0", "0", "0")}
    assert max(registers) <= 64  # 4 blocks of 256 threads on a multiprocessor
