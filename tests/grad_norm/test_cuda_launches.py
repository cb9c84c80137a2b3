"""What surrounds the CUDA kernels: contexts, early launches, tickets, compilation, registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_host.kernels import Kernels

from fastclip import native

CSRC = Path(__file__).parents[2] / "csrc"
PAGE = 2040  # tensors in one launch


def test_no_context_is_made_on_another_device_than_the_tensors(kernels):
    kernels.library.forget_contexts()
    x = torch.ones(4)
    assert kernels.norm([x], device_index=3)["norm"] == 2
    kernels.scale_([x], 1.0, 2.0, device_index=3)
    assert kernels.library.has_context(3)
    assert not kernels.library.has_context(0)
    assert kernels.library.current_device() == 0


def test_a_scaling_behind_its_norm_begins_early_where_the_code_waits(kernels):
    x = [torch.ones(4) for _ in range(PAGE + 1)]
    for index, (capability, driver, early) in enumerate(
        [(90, 13000, 1), (120, 13000, 1), (80, 13000, 0), (90, 12010, 0)]
    ):
        kernels.library.set_capability(capability, 80)
        kernels.library.set_driver(driver)
        kernels.device()
        kernels.scale_(x, 1.0, 2.0, device_index=20 + index, after_norm=True)
        assert kernels.library.early_launches() == early  # of two pages the first
        kernels.scale_(x, 1.0, 2.0, device_index=20 + index)
        assert kernels.library.early_launches() == early


def test_why_not_asks_for_code_not_for_the_devices_number(kernels):
    assert kernels.library.why_not(0) == b""
    kernels.library.set_capability(87, 80)
    assert kernels.library.why_not(0) == b""
    kernels.library.set_capability(90, 100)
    assert b"no code for the device, of compute capability 9.0" in kernels.library.why_not(0)
    assert b"sees no such device" in kernels.library.why_not(64)
    kernels.library.set_driver(0)
    assert kernels.library.why_not(0) == b"there is no driver"


def test_captured_launches_own_their_ticket(cuda_kernels):
    cuda_kernels.set_device(3, 2, 0, True)
    assert Kernels(cuda_kernels).norm([torch.ones(4)])["norm"] == 2
    assert cuda_kernels.tickets_in_use() == 0


def test_graphs_hold_any_number_of_norms(cuda_kernels):
    """A ticket for each is set aside for 32,768 of them."""
    kernels, x = Kernels(cuda_kernels), [torch.ones(4) for _ in range(PAGE + 1)]
    cuda_kernels.set_device(3, 2, 0, True)
    cuda_kernels.set_host_only(True)
    for _ in range(1 << 14):
        kernels.norm(x[:1])  # two norms each
    cuda_kernels.set_host_only(False)
    for count in (1, len(x)):  # of one page, and of two that share a ticket
        assert kernels.norm(x[:count])["norm"] == 2 * count**0.5
    assert cuda_kernels.tickets_in_use() == 0
    cuda_kernels.set_device(3, 2, 0, False)


def test_the_stand_in_sees_a_barrier_that_a_warp_misses(cuda_kernels):
    assert b"deadlock" in cuda_kernels.run_broken_kernel()


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
    text = ""
    for name in ("grad_norm", "scale", "unit_clip"):
        source = [str(CSRC / "cuda" / f"{name}.cu"), "-o", str(tmp_path / f"{name}.o")]
        done = subprocess.run([*command, *source], capture_output=True, text=True, check=True)
        text += done.stderr
    assert "warning" not in text
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", text)
    entry = r"Compiling entry function '(\w+)'.*?Used (\d+) registers"
    found = [(name, int(used)) for name, used in re.findall(entry, text, re.DOTALL)]
    power = [used for name, used in found if "NormKindE4" in name]  # its blocks are 3
    registers = [used for name, used in found if "NormKindE4" not in name]
    print(f"registers: {sorted(registers)}, of powers: {sorted(power)}")
    assert len(registers) == 2 * 7 * len(levels)  # a small and a large page
    assert len(power) == 2 * len(levels)
    assert set(spills) == {("0", "0", "0")}  # of functions that are called, too
    assert max(registers) <= 64  # 4 blocks of 256 threads on a multiprocessor
    assert max(power) <= 80  # 3 of them
