"""What a step allocates: torch's CPU allocations replayed, and the peak of the whole process.

The profiler reports every allocation and release of a CPU tensor, so the figures are exact and the
same in each run; it does not see what native code takes with `new`. The process's peak does, to the
page, but also what the allocator keeps: `process_peak_bytes` wants a process of its own, started
with `RETURN_MEMORY` in its environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

# glibc gives blocks of 64 KB and more back to the system when they are freed.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PEAK_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Allocations:
    """Bytes of CPU tensors beyond those alive at the start."""

    peak: int  # the most at one time
    end: int  # still alive when the call returned


def traced(call: Callable[[], object]) -> tuple[object, Allocations]:
    """The result of `call` and what it allocated; the result is still alive at the end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return result, Allocations(peak, live)


def traced_step(forward: Callable, backward: Callable) -> tuple[Allocations, Allocations]:
    """Allocations of `loss = forward()` alone, and of it with `backward(loss)` after it."""
    loss, first = traced(forward)
    _, second = traced(lambda: backward(loss))
    whole = Allocations(max(first.peak, first.end + second.peak), first.end + second.end)
    return first, whole


def process_peak_bytes(call: Callable[[], object]) -> int:
    """How far the resident memory of this process rises above its start during `call`."""
    PEAK_RESET.write_text("5")  # resets VmHWM to VmRSS
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
