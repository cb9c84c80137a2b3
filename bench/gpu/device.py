"""The device that `make gpu` measures, or its stand-in on the CPU: waiting, timing, facts."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastclip import native

FLUSH_BYTES = 1 << 28  # over twice any L2 cache
QUEUE_CYCLES = 4_000_000  # about 2 ms, in which the host queues any call whole
QUERY = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,ecc.mode.current,temperature.gpu,"
    "power.draw,pstate"
)


class Cuda:
    """The current CUDA device."""

    type = "cuda"

    def __init__(self) -> None:
        self._flush: torch.Tensor | None = None

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def loss_core(self) -> contextlib.AbstractContextManager[None]:
        """What the structure loss runs under: nothing special here."""
        return contextlib.nullcontext()

    def mark(self) -> Any:
        """A point in the stream; see `between_ms`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ms(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end)

    def flush(self) -> None:
        """Replaces what the L2 cache holds by clean lines, then keeps the device busy a while.

        The lines are read, since written ones would be written back in the time of the next call;
        and while the device sleeps the host queues that call, so that no host time is in it.
        """
        if self._flush is None:
            self._flush = torch.ones(FLUSH_BYTES // 4, device="cuda")
        self._flush.sum()
        torch.cuda._sleep(QUEUE_CYCLES)

    def facts(self) -> dict[str, str]:
        """Clocks, driver, ECC and temperature as they are now, by nvidia-smi."""
        if shutil.which("nvidia-smi") is None:
            return {"nvidia-smi": "not found"}
        index = torch.cuda.current_device()
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", f"--id={index}"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if found.returncode:
            return {"nvidia-smi": " ".join((found.stderr or found.stdout).split())}
        values = [value.strip() for value in found.stdout.strip().split(",")]
        return dict(zip(QUERY.split(","), values, strict=False))


class OnHost:
    """The CPU in a device's place, for rehearsals: it runs CUDA's kernels (tests/cuda_on_host)."""

    type = "cpu"
    name = "rehearsal on the CPU"

    def __init__(self) -> None:
        sys.path.append(str(Path(__file__).parents[2] / "tests"))
        import cuda_on_host
        import pytest

        self._own_core = native.core
        folder = Path(os.environ["FASTCLIP_ON_HOST"])
        core, interface = cuda_on_host.extension(folder)
        interface.set_device(3, 2, 0, False)
        cuda_on_host.install(core, pytest.MonkeyPatch())

    def synchronize(self) -> None:
        """Nothing is queued on a CPU."""

    def mark(self) -> float:
        return time.perf_counter()

    def between_ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3

    def flush(self) -> None:
        """A rehearsal's times mean nothing."""

    def facts(self) -> dict[str, str]:
        return {"name": self.name}

    @contextlib.contextmanager
    def loss_core(self) -> Iterator[None]:
        """The CPU's core, since the structure loss has no CUDA kernels that could run here."""
        on_host, native.core = native.core, self._own_core
        try:
            yield
        finally:
            native.core = on_host


Device = Cuda | OnHost


def of(name: str) -> Device:
    """'cuda', or 'host' for the stand-in."""
    return Cuda() if name == "cuda" else OnHost()


def copy_gb_per_s(device: Device, elements: int, repeats: int = 30) -> float:
    """The median of copies on the device after as many untimed, read and write counted."""
    source = torch.randn(elements, device=device.type)
    target = torch.empty_like(source)
    times = timed_ms(device, lambda: target.copy_(source), repeats, warmup=repeats)
    return 2 * source.numel() * 4 / statistics.median(times) / 1e6


def timed_ms(
    device: Device, call: Callable[[], object], repeats: int, warmup: int = 3
) -> list[float]:
    """Milliseconds of each call on the device, its L2 cache clean and foreign."""
    marks = []
    for repeat in range(warmup + repeats):
        device.flush()
        start = device.mark()
        call()
        end = device.mark()
        if repeat >= warmup:
            marks.append((start, end))
    device.synchronize()
    return [device.between_ms(start, end) for start, end in marks]
