"""Draws results/end_to_end_cpu.csv: where the time of a training step goes, before and after.

python bench/plot_end_to_end.py
"""

from __future__ import annotations

import csv

import measure

NAME = "end_to_end_cpu"
COLOURS = {
    "forward and backward": "#b8c4d0",
    "clip": "#c44e52",
    "optimizer": "#6b8fb5",
    "clip in the optimizer": "#8172b3",
}


def main() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with (measure.RESULTS / f"{NAME}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_case: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        part, _, variant = row["variant"].partition(" of ")
        if variant:
            bars = by_case.setdefault(row["case"], {}).setdefault(variant, {})
            bars[part] = float(row["median_ms"])
    figure = Figure(figsize=(10, 1.2 + 1.5 * len(by_case)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(by_case), 2, squeeze=False, sharey="row")
    known = {}
    for (case, variants), line in zip(by_case.items(), grid, strict=True):
        for axes, whole in zip(line, (True, False), strict=True):
            widest = 0.0
            for y, parts in enumerate(variants.values()):
                left = 0.0
                for part, colour in COLOURS.items():
                    if part in parts and (whole or part != "forward and backward"):
                        known[part] = axes.barh(y, parts[part], left=left, color=colour)
                        left += parts[part]
                axes.annotate(f" {left:.3g} ms", (left, y), va="center", fontsize=8)
                widest = max(widest, left)
            axes.set_yticks(range(len(variants)), list(variants), fontsize=8)
            axes.set(xlim=(0, 1.25 * widest), ylim=(len(variants) - 0.5, -0.5))
            what = "a whole step" if whole else "without forward and backward"
            axes.set_title(f"{case}: {what}", fontsize=8)
            axes.tick_params(axis="x", labelsize=8)
    figure.legend(known.values(), known, loc="outside lower center", ncols=4, fontsize=8)
    last = rows[-1]
    where = f"{last['device']}, {last['threads']} threads, torch {last['torch']}, {last['date']}"
    figure.suptitle(f"every step clips; medians in ms on {where}", fontsize=9)
    figure.savefig(measure.RESULTS / f"{NAME}.png", dpi=100)


if __name__ == "__main__":
    main()
