"""A training step of TransFuse_S part by part, with torch's functions and with fastclip's.

    python -m gpu.breakdown --device cuda --out FILE [--steps 30]

Both variants share one network, and take turns at every step, so that clocks and heat are equal.
FILE gets the median milliseconds on the device of each part: variant, forward, loss, backward,
clip, step, all.
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
from collections.abc import Callable
from pathlib import Path

import bench_structure_loss as plain
import torch
from fastclip.transfuse.factory import create_model
from torch import Tensor

import fastclip
from gpu import device

PARTS = ("forward", "loss", "backward", "clip", "step")
WARMUP = 3
LIMIT = 0.5  # of the gradients' norm, as the published training clips
SIZES = {"cuda": ("transfuse_s", 16, 192, 256), "cpu": ("transfuse_t", 1, 64, 64)}

Loss = Callable[[list[Tensor], Tensor], Tensor]
Clip = Callable[[list[Tensor], float], Tensor]
VARIANTS: dict[str, tuple[Loss, Clip]] = {
    "torch": (plain.eager, torch.nn.utils.clip_grad_norm_),
    "fastclip": (
        functools.partial(fastclip.structure_loss, head_weights=plain.HEAD_WEIGHTS),
        fastclip.clip_grad_norm_,
    ),
}


def marked_step(
    on: device.Device, variant: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> list[object]:
    """One step on new random images; a mark before, and one behind each of PARTS."""
    loss_of, clip_ = VARIANTS[variant]
    _, batch, height, width = SIZES[on.type]
    images = torch.randn(batch, 3, height, width, device=on.type)
    mask = (torch.rand(batch, 1, height, width, device=on.type) > 0.7).float()
    optimizer.zero_grad()
    marks = [on.mark()]
    with torch.autocast(on.type, torch.bfloat16):
        maps = model(images)
    marks.append(on.mark())
    loss = loss_of([maps[2], maps[1], maps[0]], mask)
    marks.append(on.mark())
    loss.backward()
    marks.append(on.mark())
    clip_(list(model.parameters()), LIMIT)
    marks.append(on.mark())
    optimizer.step()
    return [*marks, on.mark()]


def breakdown(on: device.Device, steps: int) -> list[dict[str, str]]:
    """The median times of each part, a row a variant."""
    torch.manual_seed(0)
    model = create_model(SIZES[on.type][0]).to(on.type)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    marks: dict[str, list[list[object]]] = {variant: [] for variant in VARIANTS}
    with on.loss_core():
        for step in range(WARMUP + steps):
            for variant, seen in marks.items():
                found = marked_step(on, variant, model, optimizer)
                if step >= WARMUP:
                    seen.append(found)
    on.synchronize()
    rows = []
    for variant, seen in marks.items():
        row = {"variant": variant}
        for i, part in enumerate(PARTS):
            times = [on.between_ms(found[i], found[i + 1]) for found in seen]
            row[part] = f"{statistics.median(times):.4g}"
        whole = [on.between_ms(found[0], found[-1]) for found in seen]
        rows.append({**row, "all": f"{statistics.median(whole):.4g}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "host"], default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    rows = breakdown(device.of(args.device), args.steps)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["variant", *PARTS, "all"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
