"""Times of one call on a GPU: what the host spends, what the device spends, and its kernels.

host_us     from the call to its return, nothing queued before it
wall_ms     between two events round the call, behind a write that empties the L2 cache
kernels_ms  its kernels' own time, by torch.profiler; `launches` counts them
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

HOST_CALLS, WALL_CALLS, WARMUP, PROFILED = 20, 20, 3, 3
FLUSH_BYTES = 1 << 29  # its write takes the device longer than most calls take the host


def copy_gb_per_s() -> float:
    """Of a device-to-device copy, bytes read and written together: the ceiling here."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    ms = statistics.median(_wall_ms({"copy": lambda: target.copy_(source)})["copy"])
    return 2 * source.numel() * 4 / ms / 1e6


def measured(calls: Mapping[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """All three times and the launches of each call, the calls taking turns."""
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    host, wall = _host_us(calls), _wall_ms(calls)
    found = {}
    for name, call in calls.items():
        kernels_ms, launches = _profiled(call)
        found[name] = {
            "host_us": statistics.median(host[name]),
            "wall_ms": statistics.median(wall[name]),
            "spread_ms": max(wall[name]) - min(wall[name]),
            "kernels_ms": kernels_ms,
            "launches": launches,
        }
    return found


def _host_us(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(HOST_CALLS):
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e6)
    torch.cuda.synchronize()
    return times


def _wall_ms(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    flush = torch.empty(FLUSH_BYTES // 4, device="cuda")
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    for _ in range(WALL_CALLS):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [s.elapsed_time(e) for s, e in pairs] for name, pairs in events.items()}


def _profiled(call: Callable[[], object]) -> tuple[float, float]:
    torch.cuda.synchronize()
    both = torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=both) as profile:
        for _ in range(PROFILED):
            call()
        torch.cuda.synchronize()
    events = profile.events() or []
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    total_us = sum(e.time_range.elapsed_us() for e in kernels)
    return total_us / 1e3 / PROFILED, len(kernels) / PROFILED
