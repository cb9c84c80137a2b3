"""Every op on a GPU against torch: tests first, then times, then one table.

    PYTHONPATH=.:bench python3 -m gpu.run --out FOLDER [--minutes 7] [--dry-run]

Writes FOLDER/gpu.csv, FOLDER/tests.log and, where there is a compute-sanitizer, its logs.
`of_copy` is the bytes that the work must move over its wall time, as a fraction of what a measured
device-to-device copy moves; clipping moves a read, and a read and a write, else it is one read.
Speedups are over `torch foreach` and `eager`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import fastclip
from fastclip.report import report
from gpu import cases
from gpu.tests import run_sanitizer, run_tests
from gpu.timing import copy_gb_per_s, measured

KEYS = ["bench", "case", "variant", "host_us", "wall_ms", "spread_ms", "kernels_ms", "launches"]
COLUMNS = [*KEYS, "speedup", "host_speedup", "of_copy", "error", "torch", "device", "date"]
COMPILED_CASES = ("1 x 1 GiB fp32", "transfuse_s fp32")
Rows = list[dict[str, object]]


def rows(
    bench: str, case: str, times: dict, baseline: str, moved: int, copy: float, errors: dict
) -> Rows:
    return [
        {
            "bench": bench,
            "case": case,
            "variant": name,
            **{key: f"{t[key]:.4g}" for key in KEYS[3:]},
            "speedup": f"{times[baseline]['wall_ms'] / t['wall_ms']:.2f}",
            "host_speedup": f"{times[baseline]['host_us'] / t['host_us']:.2f}",
            "of_copy": f"{moved / t['wall_ms'] / 1e6 / copy:.2f}",
            "error": f"{errors[name]:.1e}",
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(),
            "date": datetime.date.today().isoformat(),
        }
        for name, t in times.items()
    ]


def clip_rows(case: str, clipping: bool, copy: float, *, compiled: bool = False) -> Rows:
    parameters = cases.parameters_of(case)
    exact = cases.exact_norm(parameters)
    variants = cases.clips()
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

    times = measured({name: functools.partial(call, clip_) for name, clip_ in variants.items()})
    moved = cases.numbers_of(case)[2] * (3 if clipping else 1)
    name = "clip, clipping" if clipping else "clip, not clipping"
    return rows(name, case, times, "torch foreach", moved, copy, errors)


def loss_rows(copy: float) -> Rows:
    import bench_structure_loss as plain

    shape, dtype = (16, 1, 352, 352), torch.bfloat16
    mask = (torch.rand(shape, device="cuda") > 0.7).float()
    heads = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    ours = functools.partial(fastclip.structure_loss, head_weights=plain.HEAD_WEIGHTS)
    variants = {"eager": plain.eager, "rewrite": plain.rewrite, "fastclip": ours}
    variants["rewrite, compiled"] = torch.compile(plain.rewrite)
    exact = plain.eager([head.double() for head in heads], mask.double()).item()
    scale = plain.LOSS_SCALE.cuda()

    def call(loss: Callable) -> object:
        for head in heads:
            head.grad = None
        value = loss(heads, mask)
        value.backward(scale)
        return value.detach()

    errors = {name: abs(loss(heads, mask).item() / exact - 1) for name, loss in variants.items()}
    times = measured({name: functools.partial(call, loss) for name, loss in variants.items()})
    bytes_each = sum(head.numel() * 2 for head in heads)
    moved = 3 * bytes_each + 2 * mask.numel() * 4  # logits twice, gradients once, the mask twice
    case = "3 heads, 16x1x352x352, bf16, forward + backward"
    return rows("structure_loss", case, times, "eager", moved, copy, errors)


def benches(copy: float) -> Iterator[tuple[str, Callable[[], Rows]]]:
    for case in cases.CASES:
        for clipping in (False, True):
            yield case, functools.partial(clip_rows, case, clipping, copy)
    yield "structure_loss", functools.partial(loss_rows, copy)
    for case in COMPILED_CASES:
        yield f"{case}, compiled", functools.partial(clip_rows, case, True, copy, compiled=True)


def out_of_time(*_: object) -> None:
    raise TimeoutError("out of time")


def print_table(found: Rows) -> None:
    shown = COLUMNS[:12]
    lines = [[str(row[key]) for key in shown] for row in found]
    widths = [max(len(line[i]) for line in [shown, *lines]) for i in range(len(shown))]
    for line in [shown, *lines]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7, help="all in all; the rest is skipped")
    parser.add_argument("--dry-run", action="store_true", help="print the cases; needs no GPU")
    args = parser.parse_args()
    for case in cases.CASES:
        tensors, elements, size = cases.numbers_of(case)
        print(f"{case}: {tensors} tensors, {elements / 1e6:.1f}M elements, {size / 1e6:.0f} MB")
    if args.dry_run:
        return
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing was tested or timed")
    signal.signal(signal.SIGALRM, out_of_time)
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    tests = run_tests(args.out, 60 * args.minutes / 2)
    sanitizer = run_sanitizer(args.out, 60 * args.minutes / 8)
    copy = copy_gb_per_s()
    found, skipped = [], []
    with (args.out / "gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, bench in benches(copy):
            left = deadline - time.monotonic()
            if left < (60 if "compiled" in name else 10):
                skipped.append(f"{name}: out of time")
                continue
            signal.alarm(int(left))
            try:
                new = bench()
            except Exception as error:  # one case must not lose the others; it is named below
                skipped.append(f"{name}: {type(error).__name__}: {error}")
                continue
            finally:
                signal.alarm(0)
                torch.cuda.empty_cache()
            writer.writerows(new)
            file.flush()
            found += new
    print_table(found)
    print("\n".join(f"skipped: {line}" for line in skipped))
    print(report())
    print(f"device copy: {copy:.0f} GB/s, read and write")
    print(f"compute-sanitizer: {sanitizer}")
    print(f"tests: {tests}")


if __name__ == "__main__":
    main()
