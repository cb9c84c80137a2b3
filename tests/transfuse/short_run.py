"""Configurations of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import tiny

from fastclip.transfuse.config.train import TrainConfig


def short(out: Path, **changes: Any) -> TrainConfig:
    """Six images in batches of two: three steps in the one epoch, by Adam at a constant rate."""
    plain = {"epochs": 1, "batch_size": 2, "synthetic_images": 6, "lr": 7e-5, "optimizer": "adam"}
    even = {"weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
    return tiny(out, **plain | even | changes)


def recorded(out: Path, **changes: Any) -> TrainConfig:
    """Six steps, with the norms of every second one."""
    return tiny(out, **{"max_steps": 6, "norms_every": 2, "report": False} | changes)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def pairs(root: Path, count: int = 6) -> Path:
    """Images and masks of noise under `root`."""
    generator = np.random.default_rng(0)
    for row in range(count):
        for kind in ("images", "masks"):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            if kind == "masks":
                pixels = (pixels[..., 0] > 127).astype(np.uint8) * 255
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"case{row}.png")
    return root
