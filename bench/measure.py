"""Timing for every benchmark: variants interleaved in one run, medians compared, rows kept."""

from __future__ import annotations

import csv
import ctypes
import datetime
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
KEY = ("bench", "case", "dtype", "variant")
COLUMNS = (*KEY, "median_ms", "speedup", "gb_per_s", "error", "torch", "device", "threads", "date")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def interleaved_ms(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 3,
    in_a_loop: int = 0,
) -> dict[str, float]:
    """Median milliseconds of each variant; they take turns, so all see the same machine.

    A turn is one call, which finds code, objects and data as cold as the others leave them; or one
    that is not timed and then `in_a_loop` calls that are, which find them warm. Every round has an
    order of its own: always after the same other variant, one would always pay for what that does
    to caches.
    """
    _keep_freed_memory()
    times: dict[str, list[float]] = {name: [] for name in variants}
    order, draw = list(variants), random.Random(0)
    for repeat in range(warmup + repeats):
        draw.shuffle(order)
        for name in order:
            call = variants[name]
            if in_a_loop:
                call()
            for _ in range(max(1, in_a_loop)):
                start = time.perf_counter()
                call()
                if repeat >= warmup:
                    times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed, for every variant alike.

    By default it gives a large heap back to the system at the next large release, whose ever that
    is: milliseconds after the eager structure loss, in the time of whichever variant comes next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(threshold, 2**31 - 1)


def rows(
    bench: str,
    case: str,
    dtype: str,
    medians_ms: Mapping[str, float],
    *,
    baseline: str,
    moved_bytes: Mapping[str, int] | None = None,
    errors: Mapping[str, float] | None = None,
) -> list[dict[str, object]]:
    """One row a variant. `speedup` is the baseline's time over the variant's."""
    moved, errors = moved_bytes or {}, errors or {}
    return [
        {
            "bench": bench,
            "case": case,
            "dtype": dtype,
            "variant": name,
            "median_ms": f"{ms:.4f}",
            "speedup": f"{medians_ms[baseline] / ms:.2f}",
            "gb_per_s": f"{moved[name] / ms / 1e6:.1f}" if name in moved else "",
            "error": f"{errors[name]:.1e}" if name in errors else "",
            "torch": torch.__version__,
            "device": cpu_name(),
            "threads": torch.get_num_threads(),
            "date": datetime.date.today().isoformat(),
        }
        for name, ms in medians_ms.items()
    ]


def save(name: str, new: list[dict[str, object]]) -> None:
    """Writes rows to results/<name>.csv; a row measured again replaces the old one."""
    path = RESULTS / f"{name}.csv"
    kept = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {tuple(row[k] for k in KEY): row for row in csv.DictReader(file)}
    kept.update({tuple(str(row[k]) for k in KEY): row for row in new})  # type: ignore[misc]
    RESULTS.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())
    for row in new:
        print(*(row[column] for column in COLUMNS[1:8]), sep="  ")


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
