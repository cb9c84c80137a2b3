"""The picture of a run: what a step is spent on, as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastclip.benchmark.errors import BenchmarkError
from fastclip.benchmark.result import Result
from fastclip.benchmark.step import IN_STEP, TORCH
from fastclip.benchmark.verdict import percent, saved

COLOURS = {
    "forward and backward": "#b8c4d0",
    "clip": "#c44e52",
    "optimizer": "#6b8fb5",
    "clip in the optimizer": "#8172b3",
}


def parts_ms(result: Result, mode: str) -> dict[str, dict[str, float]]:
    """For each variant, its step's parts in milliseconds, in the order of time."""
    step, times = result.step, result.step.modes[mode]
    found = {
        name: {
            "forward and backward": step.forward_backward.median_ms,
            "clip": time.median_ms,
            "optimizer": step.optimizer.median_ms,
        }
        for name, time in times.alone.items()
    }
    if IN_STEP in times.with_optimizer:
        found[IN_STEP] = {
            "forward and backward": step.forward_backward.median_ms,
            "clip in the optimizer": times.with_optimizer[IN_STEP].median_ms,
        }
    return found


def draw(result: Result, path: Path) -> None:
    """Writes a PNG: stacked bars of a whole step above, of all but forward and backward below.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError("--png needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, 2, sharey=True)
    for column, mode in enumerate(result.step.modes):
        for whole, axes in zip((True, False), rows[:, column], strict=True):
            _bars(axes, result, mode, whole)
    known = {}
    for axes in rows.flat:
        known.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    figure.legend(known.values(), known, loc="outside lower center", ncols=4, fontsize=8)
    machine = result.machine
    figure.suptitle(f"{result.model}, {result.batch}, {result.dtype}; {machine.name}", fontsize=9)
    figure.savefig(path, dpi=120)


def _bars(axes: Any, result: Result, mode: str, whole: bool) -> None:
    """One bar for each variant, with its milliseconds, and what a whole step gains over torch."""
    variants, widest = parts_ms(result, mode), 0.0
    for y, (name, parts) in enumerate(variants.items()):
        left = 0.0
        for part, ms in parts.items():
            if whole or part != "forward and backward":
                axes.barh(y, ms, left=left, color=COLOURS[part], label=part)
                left += ms
        text = f" {left:.3g} ms"
        if whole and name != TORCH:
            text += f", {percent(-saved(result.step, mode, name))}"
        axes.annotate(text, (left, y), va="center", fontsize=8)
        widest = max(widest, left)
    axes.set_yticks(range(len(variants)), list(variants), fontsize=8)
    axes.set(xlim=(0, 1.5 * widest), ylim=(len(variants) - 0.5, -0.5), xlabel="ms")
    title = "a whole step" if whole else "without forward and backward"
    axes.set_title(f"{mode}: {title}", fontsize=9)
