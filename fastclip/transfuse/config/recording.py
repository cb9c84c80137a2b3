"""Flags about what a run shows and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastclip.transfuse.config.checks import require, require_at_least


@dataclass(kw_only=True)
class RecordingConfig:
    """What is shown and kept beside the CSV files and the pictures."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ()

    report: bool = True
    """Write report.html at the end: curves, worst and best images, every image's scores."""
    norms_every: int = 50
    """Steps between two measurements of each layer's gradient norm, for norms.csv; 0 for none."""
    tensorboard: bool = False
    """Also write TensorBoard events to --out."""
    wandb: bool = False
    """Also log to Weights & Biases; WANDB_MODE=offline keeps it in --out. pip install wandb."""
    trackio: bool = False
    """Also log to trackio, which keeps it on this machine. pip install trackio."""
    project: str = "fastclip"
    """Project of --wandb and --trackio; the run has the name of --out."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 0, "norms_every")
        require(self, "project", bool(self.project.strip()), "a name")


@dataclass(kw_only=True)
class ReportConfig:
    """Make report.html of a run again, from the files in its folder; of a stopped run too."""

    run: Path
    """Folder of the run: the --out of fastclip train."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require(self, "run", self.run.is_dir(), "the folder of a run")
