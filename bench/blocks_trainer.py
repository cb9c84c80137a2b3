"""The trainer's step, its loader, and what it reached on real images, from the rows."""

from __future__ import annotations

import statistics

import blocks
from blocks import block, rows, shown_ms

PHASES = ("forward", "loss", "backward", "clip and optimizer", "step")


@block
def trainer_step() -> str:
    """Where a step of the trainer goes, with torch's functions and with fastclip's."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for r in rows("trainer_step"):
        case, phase = r["case"].split(", ")
        found.setdefault(case, {}).setdefault(phase, {})[r["variant"]] = r
    lines = []
    for case, phases in found.items():
        for phase in PHASES:
            slow, fast = phases[phase]["torch"], phases[phase]["fastclip"]
            times = (shown_ms(blocks.ms(r)) for r in (slow, fast))
            lines.append((f"{case}, {phase}", *times, blocks.factor(slow, fast)))
    return blocks.table(("a step of the trainer", "torch", "fastclip", ""), lines)


@block
def trainer_loader() -> str:
    """The loader alone against the model alone."""
    found: dict[str, dict[str, float]] = {}
    for r in rows("loader"):
        found.setdefault(r["case"], {})[r["variant"]] = blocks.ms(r)
    lines = []
    for case, times in found.items():
        images = int(case.split()[1].split("x")[0])
        for name, ms in times.items():
            share = "" if name == "model alone" else f"{ms / times['model alone']:.1%}"
            lines.append((f"{case}, {name}", f"{images / ms * 1e3:,.0f}", share))
    return blocks.table(("batches of uint8 images", "images/s", "of a step"), lines)


QUICK_MINUTES, LONG_MINUTES = 3.5, 30.0  # of `make train`, and of its recipe


def last_lines(minutes: float) -> list[dict[str, str]]:
    """The last epoch of each run of so many minutes: not the best, which its images chose."""
    runs = {r["seed"]: r for r in rows("train_isic2017") if float(r["minutes"]) == minutes}
    return list(runs.values())


@block
def dice() -> str:
    """README's sentences on what the trainer reached."""
    (quick,) = last_lines(QUICK_MINUTES)
    long = [float(r["dice"]) for r in last_lines(LONG_MINUTES)]
    return (
        f"On ISIC 2017 (2000 images, from scratch, 96x128, two cores, {quick['precision']}) it "
        f"reached a Dice of {float(quick['dice']):.3f} on the 150\nvalidation images after "
        f"{float(quick['seconds']):.0f} s; the recipe's own half an hour "
        f"{statistics.mean(long):.3f} ({len(long)} seeds, standard deviation\n"
        f"{statistics.stdev(long):.3f}; [rows](bench/results/train_isic2017.csv)). The settings "
        "were chosen on these 150; on a split of the training images others did no better.\n"
    )


@block
def dice_by_seed() -> str:
    """The last epoch of each run."""
    lines = []
    for r in [*last_lines(QUICK_MINUTES), *last_lines(LONG_MINUTES)]:
        own = f"{float(r['own_size_dice']):.4f}" if r["own_size_dice"] else ""
        cells = (r["minutes"], r["seed"], r["epoch"], f"{float(r['dice']):.4f}", own)
        lines.append((*cells, f"{float(r['iou']):.4f}", f"{float(r['accuracy']):.4f}"))
    heads = ("minutes", "seed", "epochs", "Dice", "at the images' size", "IoU", "accuracy")
    return blocks.table(heads, lines)
