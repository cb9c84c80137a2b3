"""`fastclip predict`: which networks, which images, what is written; and how networks are asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastclip.transfuse.config.checks import Device, require, require_at_least


@dataclass(kw_only=True)
class EnsembleConfig:
    """Which networks are asked, and how."""

    checkpoint: tuple[Path, ...]
    """best.pt or last.pt of a run, or a state dict. Of several, probabilities are averaged."""
    model: str | None = None
    """Name of the network, for a state dict that does not tell."""
    threshold: float = 0.5
    """Probability from which a pixel belongs to the mask."""
    tta: Literal["none", "flips", "scales", "flips+scales"] = "none"
    """Average over views of each image as well: its three mirror images, other sizes, or both."""
    tta_scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Factors of the size, with scales in --tta; sides go to the nearest multiple of 16."""
    batch_size: int = 8
    """Images at a time."""
    device: Device = "auto"
    """auto takes a GPU where there is one."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require(self, "checkpoint", len(self.checkpoint) > 0, "one file or more")
        require(self, "threshold", 0 < self.threshold < 1, "between 0 and 1")
        require_at_least(self, 1, "batch_size")
        fine = self.tta_scales and all(0 < scale < math.inf for scale in self.tta_scales)
        require(self, "tta_scales", bool(fine), "positive numbers")


@dataclass(kw_only=True)
class ResultsConfig:
    """Which images, and what is written where."""

    images: tuple[str, ...]
    """Images of any sizes: files, folders, patterns such as 'a/*.png', or a .txt of file names."""
    out: Path
    """Folder for <name>_mask.png (0 or 255, or class numbers, in the image's own size),
    <name>_prob.png (16 bits, 65535 is certain) and <name>_overlay.png."""
    save: tuple[Literal["masks", "probabilities", "overlays"], ...] = ("masks", "overlays")
    """What to write."""
    recursive: bool = False
    """Also take the images in sub-folders; results keep the sub-folders."""
    overwrite: bool = False
    """Replace results that are there already, which are kept otherwise."""
    intensity: Literal["dtype", "percentile"] | None = None
    """How images of more than 8 bits become 8; None is as in training."""


@dataclass(kw_only=True)
class PredictConfig(ResultsConfig, EnsembleConfig):
    """Write a mask and an overlay, both PNG, for every image."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        super().check()
        if not self.save:
            raise ValueError("--save must name some of masks, probabilities, overlays")
