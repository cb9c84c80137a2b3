"""`fastclip evaluate`: which checkpoint is measured, on what, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastclip.transfuse.config.checks import Device, Split, require_at_least
from fastclip.transfuse.config.data import DataConfig


@dataclass(kw_only=True)
class MeasureConfig:
    """What is measured, and where the numbers go."""

    checkpoint: Path
    """best.pt or last.pt of a run, or a state dict."""
    model: str | None = None
    """Name of the network, for a state dict that does not tell."""
    split: Split = "val"
    """Which part of the data; 'all' takes data without train and val whole."""
    size: str | None = None
    """HxW to evaluate at; None is the size of training."""
    batch_size: int = 16
    """Images at a time."""
    csv: Path | None = None
    """Also write one row per image to this file."""
    device: Device = "auto"
    """auto takes a GPU where there is one."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 1, "batch_size")


@dataclass(kw_only=True)
class EvaluateConfig(MeasureConfig, DataConfig):
    """Loss, Dice, IoU and accuracy of a checkpoint on a data set.

    Masks are read as in training, unless any flag about masks is given.
    """
