"""The table: every op against torch eager, torch.compile and the best plain-torch rewrite.

    python -m gpu.rows --device cuda --journal FILE [--list] [ITEM ...]

`of_copy` is the bytes that the work must move over its wall time, as a fraction of what a measured
copy moves; clipping moves a read, and a read and a write, else it is one read. `expected_ms` is
those bytes over the copy's bandwidth, and a launch's latency for each launch of fastclip's: a row
far above it has missed. Speedups are over `torch foreach` and `eager`.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable
from pathlib import Path

import bench_structure_loss as plain
import torch

import fastclip
from gpu import cases, device, supervise
from gpu.timing import measured
from gpu.worker import run

KEYS = ["bench", "case", "variant", "host_us", "wall_ms", "spread_ms", "kernels_ms", "launches"]
RATIOS = ["expected_ms", "speedup", "host_speedup", "of_copy", "error"]
FACTS = ["copy_gb_per_s", "torch", "device", "driver", "clock", "ecc", "temperature", "date"]
COLUMNS = [*KEYS, *RATIOS, *FACTS]
COMPILED_CASES = ("1 x 1 GiB fp32", "transfuse_s fp32")
LAUNCH_MS = 0.003  # a launch behind another, in a stream that is never empty
LAUNCHES = {"clip": 2, "structure_loss": 5}
COPY_ELEMENTS = {"cuda": 1 << 28, "cpu": 1 << 20}


def rows(on: device.Device, bench: str, case: str, times: dict, moved: int, errors: dict) -> list:
    """The table's rows of one case; the first variant is what the others are compared with."""
    copy, facts = _copy(on), on.facts()
    first = next(iter(times.values()))
    expected = moved / copy / 1e6 + LAUNCH_MS * LAUNCHES[bench.partition(",")[0]]
    return [
        {
            "bench": bench,
            "case": case,
            "variant": name,
            **{key: f"{t[key]:.4g}" for key in KEYS[3:]},
            "expected_ms": f"{expected:.4g}" if name.startswith("fastclip") else "",
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
def _copy(on: device.Device) -> float:
    return device.copy_gb_per_s(on, COPY_ELEMENTS[on.type])


def clip_rows(on: device.Device, case: str, clipping: bool, compiled: bool) -> supervise.Entry:
    parameters = cases.parameters_of(case, on.type, rehearsed=on.type == "cpu")
    exact = cases.exact_norm(parameters)
    variants = cases.clips(on)
    if compiled:
        step = torch.compile(cases.foreach)
        variants = {"torch foreach": cases.foreach, "torch compiled": step}
    errors = {
        name: abs(clip_(parameters, float("inf")).item() / exact - 1)
        for name, clip_ in variants.items()
    }
    limit = [exact * (0.9 if clipping else 2)]

    def call(clip_: cases.Clip) -> object:
        limit[0] *= 0.99 if clipping else 1  # every call clips anew, a little
        return clip_(parameters, limit[0])

    calls = {name: functools.partial(call, clip_) for name, clip_ in variants.items()}
    times = measured(on, calls, _trace("clip"))
    moved = cases.numbers_of(parameters)[2] * (3 if clipping else 1)
    name = "clip, clipping" if clipping else "clip, not clipping"
    return {"rows": rows(on, name, case, times, moved, errors)}


def loss_rows(on: device.Device) -> supervise.Entry:
    shape = (16, 1, 352, 352) if on.type == "cuda" else (1, 1, 40, 40)
    dtype = torch.bfloat16
    mask = (torch.rand(shape, device=on.type) > 0.7).float()
    heads = [torch.randn(shape, device=on.type, dtype=dtype, requires_grad=True) for _ in range(3)]
    ours = functools.partial(fastclip.structure_loss, head_weights=plain.HEAD_WEIGHTS)
    variants = {"eager": plain.eager, "rewrite": plain.rewrite, "fastclip": ours}
    if on.type == "cuda":
        variants["rewrite, compiled"] = torch.compile(plain.rewrite)
    exact = plain.eager([head.double() for head in heads], mask.double()).item()
    scale = plain.LOSS_SCALE.to(on.type)

    def call(loss: Callable) -> object:
        for head in heads:
            head.grad = None
        value = loss(heads, mask)
        value.backward(scale)
        return value.detach()

    with on.loss_core():
        errors = {
            name: abs(loss(heads, mask).item() / exact - 1) for name, loss in variants.items()
        }
        calls = {name: functools.partial(call, loss) for name, loss in variants.items()}
        times = measured(on, calls, _trace("structure_loss"))
    bytes_each = sum(head.numel() * 2 for head in heads)
    moved = 3 * bytes_each + 2 * mask.numel() * 4  # logits twice, gradients once, the mask twice
    case = f"3 heads, {'x'.join(map(str, shape))}, bf16, forward + backward"
    return {"rows": rows(on, "structure_loss", case, times, moved, errors)}


def _trace(op: str) -> Path | None:
    """Where a torch.profiler trace of the op is kept; the last case's remains."""
    folder = os.environ.get("FASTCLIP_TRACES")
    return Path(folder) / f"{op}.trace.json" if folder else None


def items(on: device.Device) -> dict[str, Callable[[], supervise.Entry]]:
    """Rows that matter most first: the time may not suffice for all."""
    found: dict[str, Callable[[], supervise.Entry]] = {}
    for case in cases.CASES:
        for clipping in (False, True):
            label = f"{case}, {'clipping' if clipping else 'not clipping'}"
            found[label] = functools.partial(clip_rows, on, case, clipping, False)
    found["structure loss"] = functools.partial(loss_rows, on)
    if on.type == "cuda":
        for case in COMPILED_CASES:
            found[f"{case}, compiled"] = functools.partial(clip_rows, on, case, True, True)
    return found


if __name__ == "__main__":
    run(items)
