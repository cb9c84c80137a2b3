"""Timing for every benchmark: variants interleaved in one run, medians compared, rows kept."""

from __future__ import annotations

import csv
import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fastclip.benchmark import timing
from fastclip.benchmark.machine import cpu_name

COMMITTED = Path(__file__).parent / "results"
RESULTS = Path(os.environ.get("FASTCLIP_BENCH_RESULTS", COMMITTED))  # elsewhere for a comparison
SECONDS = 1.5  # of rounds, for one case
KEY = ("bench", "case", "dtype", "variant")
COLUMNS = (*KEY, "median_ms", "speedup", "gb_per_s", "error", "torch", "device", "threads", "date")


def interleaved_ms(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 3,
    in_a_loop: int = 0,
) -> dict[str, float]:
    """Median milliseconds of each variant, interleaved: `fastclip.benchmark.timing`."""
    times = timing.interleaved(
        variants, repeats, warmup=warmup, in_a_loop=in_a_loop, seconds=SECONDS
    )
    return {name: timing.Time.of(samples).median_ms for name, samples in times.items()}


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
    RESULTS.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())
    for row in new:
        print(*(row[column] for column in COLUMNS[1:8]), sep="  ")
