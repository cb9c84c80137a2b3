"""The machine that is measured: its name, its versions, and how fast it reads and copies memory."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import fastclip
from fastclip.benchmark.timing import Time, interleaved

LIMIT_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # far more than a cache holds


@dataclass(frozen=True)
class Machine:
    """`read_gb_per_s` counts the bytes read; `copy_gb_per_s` those read and those written."""

    name: str
    device: str
    threads: int
    torch: str
    fastclip: str
    read_gb_per_s: float
    copy_gb_per_s: float


def measured(device: str, repeats: int = 15) -> Machine:
    """This machine; reads and copies of 256 MB (1 GB on a GPU) by torch's own kernels."""
    elements = LIMIT_BYTES[device] // 4
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {
        "read": source.sum,
        "copy": lambda: target.copy_(source),
    }
    times = interleaved(calls, repeats, device=device)
    medians_ms = {name: Time.of(samples).median_ms for name, samples in times.items()}
    return Machine(
        name=torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        fastclip=fastclip.__version__,
        read_gb_per_s=4 * elements / medians_ms["read"] / 1e6,
        copy_gb_per_s=8 * elements / medians_ms["copy"] / 1e6,
    )


def cpu_name() -> str:
    """The processor's name as the system tells it, and the vectors that torch found it to have.

    Cloud machines give one name, such as "AMD EPYC", to processors with and without AVX-512.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
