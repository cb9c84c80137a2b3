"""The tables of the trainer's step and its loader in docs/optimization.md, from the rows."""

from __future__ import annotations

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
