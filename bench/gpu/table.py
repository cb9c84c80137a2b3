"""A row of the table: times beside what a model expects, and the facts of the device."""

from __future__ import annotations

import datetime
import functools

import torch

from gpu import device

KEYS = ["bench", "case", "variant", "host_us", "wall_ms", "spread_ms", "kernels_ms", "launches"]
RATIOS = ["expected_ms", "missed", "speedup", "host_speedup", "of_copy", "error"]
FACTS = ["copy_gb_per_s", "torch", "device", "driver", "clock", "ecc", "temperature", "date"]
COLUMNS = [*KEYS, *RATIOS, *FACTS]
COPY_ELEMENTS = {"cuda": 1 << 28, "cpu": 1 << 20}


def rows(
    on: device.Device,
    bench: str,
    case: str,
    times: dict,
    moved: int,
    errors: dict,
    expected: dict[str, float],
) -> list:
    """The table's rows of one case; the first variant is what the others are compared with."""
    copy, facts = copy_gb_per_s(on), on.facts()
    first = next(iter(times.values()))
    return [
        {
            "bench": bench,
            "case": case,
            "variant": name,
            **{key: f"{t[key]:.4g}" for key in KEYS[3:]},
            "expected_ms": f"{expected[name]:.4g}",
            "missed": f"{t['wall_ms'] / expected[name]:.2f}",
            "speedup": f"{first['wall_ms'] / t['wall_ms']:.2f}",
            "host_speedup": f"{first['host_us'] / t['host_us']:.2f}",
            "of_copy": f"{moved / t['wall_ms'] / 1e6 / copy:.2f}",
            "error": f"{errors[name]:.1e}",
            "copy_gb_per_s": f"{copy:.0f}",
            "torch": torch.__version__,
            "device": on.name,
            "driver": facts.get("driver_version", ""),
            "clock": facts.get("clocks.sm", ""),
            "ecc": facts.get("ecc.mode.current", ""),
            "temperature": facts.get("temperature.gpu", ""),
            "date": datetime.date.today().isoformat(),
        }
        for name, t in times.items()
    ]


@functools.cache
def copy_gb_per_s(on: device.Device) -> float:
    """The bandwidth of a copy, measured once."""
    return device.copy_gb_per_s(on, COPY_ELEMENTS[on.type])
