"""`fastclip evaluate`: which checkpoints are measured, on what, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastclip.transfuse.config.checks import Split, finite, require
from fastclip.transfuse.config.data import DataConfig
from fastclip.transfuse.config.prediction import EnsembleConfig


@dataclass(kw_only=True)
class MeasureConfig:
    """What is measured, and where the numbers go."""

    split: Split = "val"
    """Which part of the data; 'all' takes data without train and val whole."""
    size: str | None = None
    """HxW that the networks see images at; None is the size of training."""
    threshold_search: bool = False
    """Find the --threshold of the highest mean Dice at the images' own sizes; on val only."""
    surface_tolerance: float = 2.0
    """Pixels of an outline within this distance of the other one count in the surface Dice."""
    saliency: bool = False
    """Also weighted F, S-measure and E-measure, as papers on polyps report them (PySODMetrics)."""
    against: tuple[Path, ...] = ()
    """Compare with other checkpoints (averaged), or with the --csv of an earlier evaluation, on the
    same images: mean differences, their intervals and p-values."""
    csv: Path | None = None
    """Also write one row per image to this file."""
    json: Path | None = None
    """Also write everything to this file; - is the standard output, and then nothing else is."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        good = finite(self.surface_tolerance)
        require(self, "surface_tolerance", good, "0 or more, in pixels")
        if self.threshold_search and self.split != "val":
            raise ValueError(
                f"--threshold-search chooses on validation images, and --split is {self.split}: a "
                "threshold that is chosen on the images it is tested on flatters the result. "
                "Search with --split val, then give what it finds as --threshold"
            )


@dataclass(kw_only=True)
class EvaluateConfig(EnsembleConfig, MeasureConfig, DataConfig):
    """Dice, IoU, distances and more of checkpoints on a data set, with 95 % intervals.

    Each figure is given at the size that the network works at, and at each image's own size.
    Masks are read as in training, unless any flag about masks is given.
    """

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        EnsembleConfig.check(self)
        MeasureConfig.check(self)
        if self.saliency and self.ignore is not None:
            raise ValueError("--saliency measures whole images: it does not go with --ignore")
        if self.threshold_search and self.against:
            raise ValueError(
                "--threshold-search would choose for one side of --against alone: search first, "
                "then compare at a --threshold"
            )
        if self.threshold_search and self.threshold != EnsembleConfig.threshold:
            raise ValueError(
                f"--threshold-search finds the threshold, and --threshold {self.threshold} gives "
                "it: choose one"
            )
