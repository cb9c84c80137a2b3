"""`fastclip predict`: which images, what is written, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastclip.transfuse.config.checks import Device, require, require_at_least


@dataclass(kw_only=True)
class PredictConfig:
    """Write a mask and an overlay, both PNG, for every image."""

    checkpoint: Path
    """best.pt or last.pt of a run, or a state dict."""
    images: tuple[str, ...]
    """Images of any sizes: files, folders, patterns such as 'a/*.png', or a .txt of file names."""
    out: Path
    """Folder for <name>_mask.png (0 or 255, or class numbers, in the image's own size),
    <name>_prob.png (16 bits, 65535 is certain) and <name>_overlay.png."""
    save: tuple[Literal["masks", "probabilities", "overlays"], ...] = ("masks", "overlays")
    """What to write."""
    model: str | None = None
    """Name of the network, for a state dict that does not tell."""
    recursive: bool = False
    """Also take the images in sub-folders; results keep the sub-folders."""
    overwrite: bool = False
    """Replace results that are there already, which are kept otherwise."""
    threshold: float = 0.5
    """Probability from which a pixel belongs to the mask."""
    batch_size: int = 8
    """Images at a time."""
    tta: Literal["none", "flips"] = "none"
    """flips: the mean over the image and its three mirror images."""
    intensity: Literal["dtype", "percentile"] | None = None
    """How images of more than 8 bits become 8; None is as in training."""
    device: Device = "auto"
    """auto takes a GPU where there is one."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require(self, "threshold", 0 < self.threshold < 1, "between 0 and 1")
        require_at_least(self, 1, "batch_size")
        if not self.save:
            raise ValueError("--save must name some of masks, probabilities, overlays")
