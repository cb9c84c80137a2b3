"""The table: every op against torch eager, torch.compile and the best plain-torch rewrite.

    python -m gpu.rows --device cuda --journal FILE [--list] [ITEM ...]

`of_copy` is the bytes that the work must move over its wall time, as a fraction of what a measured
copy moves; clipping moves a read, and a read and a write, else it is one read. `expected_ms` is the
model's time (gpu.model), and `missed` the wall time over it: a row far above 1 has missed. Speedups
are over `torch foreach` and `eager`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import bench_structure_loss as plain
import torch

import fastclip
from gpu import cases, device, model, other_rows, supervise
from gpu.table import copy_gb_per_s, rows
from gpu.timing import measured
from gpu.worker import run

COMPILED_CASES = ("1 x 1 GiB fp32", "transfuse_s fp32")


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
    tensors, _, size = cases.numbers_of(parameters)
    expected = {
        name: model.clip_ms(name, tensors, size, clipping, copy_gb_per_s(on), t["launches"])
        for name, t in times.items()
    }
    bench = "clip, clipping" if clipping else "clip, not clipping"
    moved = size * (3 if clipping else 1)
    return {"rows": rows(on, bench, case, times, moved, errors, expected)}


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
    own = model.loss_bytes(mask.numel(), len(heads), dtype.itemsize, mask.element_size())
    copy = copy_gb_per_s(on)
    expected = {
        name: model.loss_ms(name, moved, own, copy, t["launches"]) for name, t in times.items()
    }
    return {"rows": rows(on, "structure_loss", case, times, moved, errors, expected)}


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
    for case in COMPILED_CASES:
        found[f"{case}, by value"] = functools.partial(other_rows.value_rows, on, case)
    case = "transfuse_s fp32"
    found[f"{case}, by units"] = functools.partial(other_rows.unit_rows, on, case)
    if on.type == "cuda":
        for case in COMPILED_CASES:
            found[f"{case}, compiled"] = functools.partial(clip_rows, on, case, True, True)
    return found


if __name__ == "__main__":
    run(items)
