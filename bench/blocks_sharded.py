"""The tables of docs/distributed.md and docs/scaling.md, from the rows of bench_sharded.py."""

from __future__ import annotations

import bench_sharded as bench
import blocks
import scaling
from blocks import block, row

UNMEASURED = "Not measured on this machine yet: `make bench-all`.\n"


def is_measured() -> bool:
    return (blocks.RESULTS / f"{bench.NAME}.csv").exists()


@block
def sharded() -> str:
    """Clips of DTensors over two ranks."""
    if not is_measured():
        return UNMEASURED
    lines = []
    for mode in bench.MODES:
        for count in bench.COUNTS:
            case = bench.case_of(count, mode)
            ours, plain, floor = (
                row(bench.NAME, bench.BENCH, case, variant)
                for variant in ("fastclip", "plain", "all_reduce")
            )
            theirs, factor = "minutes, at first", ""
            if count <= bench.TORCH_UP_TO:
                slow = row(bench.NAME, bench.BENCH, case, "torch")
                theirs, factor = blocks.shown_ms(blocks.ms(slow)), blocks.factor(slow, ours)
            times = (blocks.shown_ms(blocks.ms(r)) for r in (ours, plain, floor))
            lines.append((f"{count:,}, {mode}", theirs, *times, factor))
    heads = ("DTensors of 64x32", "torch", "fastclip", "fastclip, plain", "an all_reduce", "")
    picture = f"![Clips of DTensors over two ranks](../bench/results/{bench.NAME}.png)"
    return f"{blocks.table(heads, lines)}\n{picture}\n"


@block
def scaling_of_a_clip() -> str:
    """One clip on paper, with the host's time for a DTensor as measured."""
    if not is_measured():
        return UNMEASURED
    ours, theirs = scaling.per_dtensor_us()
    heads = ("", "ranks", "messages in a row", "read", "network", "host, fastclip", "host, torch")
    return (
        f"{blocks.table(heads, scaling.table((ours, theirs)))}\nThe host's time for a DTensor, "
        f"the slope of the [rows](../bench/results/{bench.NAME}.csv) from 400 to 1600:\n"
        f"{ours:.2g} µs, torch's {theirs:.2g} µs.\n"
    )
