"""How the cost of clip_grad_norm_ grows, torch against fastclip on the CPU, nothing to clip.

    python bench/plot_clip.py               # measures, writes the rows, draws
    python bench/plot_clip.py --draw-only   # draws the rows that are there

Left: 1 to 10,000 tensors of 100 elements, where the host's work for each tensor is all there is;
its slope is the row `host cost per tensor`. Right: 10 KB to 400 MB, in one tensor and in 400. Rows
go to results/clip_scaling_cpu.csv, the picture to results/clip_scaling_cpu.png.
"""

from __future__ import annotations

import argparse
import csv
from typing import Any

import measure
import torch
from torch import nn

import fastclip

NAME = "clip_scaling_cpu"
CLIPS = {"torch": nn.utils.clip_grad_norm_, "fastclip": fastclip.clip_grad_norm_}
BY_COUNT, BY_BYTES, SLOPE = "clip, by tensors", "clip, by bytes", "host cost per tensor"
COUNTS = (1, 10, 100, 382, 1000, 3000, 10_000)
TINY = 100  # elements
BYTES = tuple(int(kb * 1000) for kb in (10, 100, 1000, 10_000, 100_000, 400_000))
COLOURS = {"torch": "#c44e52", "fastclip": "#2b6cb0"}


def times_ms(count: int, numel: int) -> dict[str, float]:
    """Medians of clipping `count` float32 gradients of `numel` elements, interleaved."""
    parameters = [nn.Parameter(torch.empty(numel)) for _ in range(count)]
    for p in parameters:
        p.grad = torch.randn(numel)
    calls = {name: (lambda clip_=clip_: clip_(parameters, 1e9)) for name, clip_ in CLIPS.items()}
    return measure.interleaved_ms(calls, repeats=9 if count * numel > 10**7 else 41)


def slope_ms(points: dict[int, float]) -> float:
    """Milliseconds for one more tensor: least squares over (tensors, ms)."""
    x = torch.tensor(list(points), dtype=torch.float64)
    y = torch.tensor(list(points.values()), dtype=torch.float64)
    return ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()


def measured() -> list[dict[str, object]]:
    """All rows: by tensors, by bytes, and the slopes."""
    found, points = [], {name: {} for name in CLIPS}
    cases = [(BY_COUNT, count, TINY) for count in COUNTS]
    cases += [(BY_BYTES, count, size // 4 // count) for count in (1, 400) for size in BYTES]
    for bench, count, numel in cases:
        times = times_ms(count, numel)
        moved = dict.fromkeys(times, 4 * count * numel)
        found += measure.rows(
            bench, f"{count} x {numel}", "float32", times, baseline="torch", moved_bytes=moved
        )
        if bench == BY_COUNT:
            for name, ms in times.items():
                points[name][count] = ms
    slopes = {name: slope_ms(by_count) for name, by_count in points.items()}
    case = f"slope over {COUNTS[0]} to {COUNTS[-1]} x {TINY}"
    rows = measure.rows(SLOPE, case, "float32", slopes, baseline="torch")
    for row, ms in zip(rows, slopes.values(), strict=True):
        row["median_ms"] = f"{ms:.7f}"  # to 0.1 ns
    return found + rows


def series(rows: list[dict[str, str]], bench: str, variant: str, count: int | None) -> Any:
    """One line's (x, milliseconds): x is the number of tensors, or bytes where `count` is given."""
    points = []
    for row in rows:
        if (row["bench"], row["variant"]) != (bench, variant):
            continue
        tensors, numel = (int(text) for text in row["case"].split(" x "))
        if count is None or tensors == count:
            x = tensors if count is None else 4 * tensors * numel
            points.append((x, float(row["median_ms"])))
    return zip(*sorted(points), strict=True)


def draw() -> None:
    """The picture, from the rows that are there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    with (measure.RESULTS / f"{NAME}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    slopes = {r["variant"]: float(r["median_ms"]) * 1e6 for r in rows if r["bench"] == SLOPE}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for name, colour in COLOURS.items():
        label = f"{name}: {slopes[name]:,.0f} ns per tensor"
        left.plot(*series(rows, BY_COUNT, name, None), "o-", color=colour, label=label)
        for count, style in ((1, "o-"), (400, "s--")):
            label = f"{name}, {count} tensor{'s' if count > 1 else ''}"
            right.plot(*series(rows, BY_BYTES, name, count), style, color=colour, label=label, ms=5)
    left.set(xlabel=f"tensors of {TINY} float32 elements", ylabel="clip_grad_norm_, ms per call")
    right.set(xlabel="bytes of gradients")
    left.set_title("by number of tensors")
    right.set_title("by bytes")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.legend(frameon=False)
    left.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    right.set_xticks([1e4, 1e5, 1e6, 1e7, 1e8], ["10 KB", "100 KB", "1 MB", "10 MB", "100 MB"])
    right.tick_params(labelleft=True)
    last = rows[-1]
    where = f"{last['device']}, {last['threads']} threads, torch {last['torch']}, {last['date']}"
    figure.suptitle(f"nothing to clip; medians on {where}", fontsize=9)
    figure.tight_layout()
    figure.savefig(measure.RESULTS / f"{NAME}.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw-only", action="store_true", help="from the rows that are there")
    if not parser.parse_args().draw_only:
        torch.manual_seed(0)
        measure.save(NAME, measured())
    draw()


if __name__ == "__main__":
    main()
