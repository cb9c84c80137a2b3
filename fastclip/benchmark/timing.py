"""Timing of calls: variants take turns in one run, and medians are compared."""

from __future__ import annotations

import ctypes
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
FEWEST = 5  # rounds, however long they take


@dataclass(frozen=True)
class Time:
    """Milliseconds of a call: the median of its measurements, and their quartiles."""

    median_ms: float
    low_ms: float
    high_ms: float
    calls: int

    @classmethod
    def of(cls, samples_ms: list[float]) -> Time:
        """The summary of at least one measurement, in milliseconds."""
        middle = median(samples_ms)
        if len(samples_ms) < 2:
            return cls(middle, middle, middle, len(samples_ms))
        low, _, high = quantiles(samples_ms, n=4, method="inclusive")
        return cls(middle, low, high, len(samples_ms))


def clock_ms(device: str) -> float:
    """The time in milliseconds, once all work that the device was given is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 3,
    in_a_loop: int = 0,
    device: str = "cpu",
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Milliseconds of every call of each variant; they take turns, so all see the same machine.

    There are `repeats` rounds, or as many as begin within `seconds` but five at least.

    A turn is one call, which finds code, objects and data as cold as the others leave them; or one
    that is not timed and then `in_a_loop` calls that are, which find them warm. Every round has an
    order of its own: always after the same other variant, one would always pay for what that does
    to caches.
    """
    keep_freed_memory()
    times: dict[str, list[float]] = {name: [] for name in variants}
    order, draw = list(variants), random.Random(0)
    end_of_all = time.perf_counter() + seconds
    for repeat in range(warmup + repeats):
        if repeat >= warmup + FEWEST and time.perf_counter() > end_of_all:
            break
        draw.shuffle(order)
        for name in order:
            call = variants[name]
            if in_a_loop:
                call()
            for _ in range(max(1, in_a_loop)):
                start = clock_ms(device)
                call()
                end = clock_ms(device)
                if repeat >= warmup:
                    times[name].append(end - start)
    return times


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, for every variant alike.

    By default it gives a large heap back to the system at the next large release, whose ever that
    is: milliseconds after an eager structure loss, in the time of whichever variant comes next.
    """
    try:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    except (OSError, TypeError):  # no such handle on this system
        return
    if mallopt is not None:
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(threshold, 2**31 - 1)
