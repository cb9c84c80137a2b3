"""Times of one call on a device: what the host spends, what the device spends, and its kernels.

host_us     from the call to its return, nothing queued before it
wall_ms     between two events round the call, queued whole before the device begins it, with the
            L2 cache clean and foreign
kernels_ms  its kernels' own time, by torch.profiler; `launches` counts them
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from gpu.device import Cuda, Device, timed_ms

CALLS, PROFILED = 30, 3


def measured(
    device: Device, calls: Mapping[str, Callable[[], object]], trace: Path | None = None
) -> dict[str, dict[str, float]]:
    """All three times and the launches of each call; a trace of the last is left in `trace`."""
    for call in calls.values():
        for _ in range(3):
            call()
    found = {}
    for name, call in calls.items():
        host = host_us(device, call)
        wall = timed_ms(device, call, _calls(device))
        kernels_ms, launches = profiled(device, call, trace)
        found[name] = {
            "host_us": statistics.median(host),
            "wall_ms": statistics.median(wall),
            "spread_ms": max(wall) - min(wall),
            "kernels_ms": kernels_ms,
            "launches": launches,
        }
    return found


def _calls(device: Device) -> int:
    """How many are timed: two where times mean nothing, since a CPU takes long for a kernel."""
    return CALLS if isinstance(device, Cuda) else 2


def host_us(device: Device, call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(_calls(device)):
        device.synchronize()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    device.synchronize()
    return times


def profiled(
    device: Device, call: Callable[[], object], trace: Path | None = None
) -> tuple[float, float]:
    """(milliseconds of kernels, launches) of a call; none on the stand-in, which has no device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if isinstance(device, Cuda):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    device.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            call()
        device.synchronize()
    if trace is not None:
        profile.export_chrome_trace(str(trace))
    events = profile.events() or []
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    total_us = sum(e.time_range.elapsed_us() for e in kernels)
    return total_us / 1e3 / PROFILED, len(kernels) / PROFILED
