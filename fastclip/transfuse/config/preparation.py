"""`fastclip info` and `fastclip download`: what comes before training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastclip.transfuse.config.data import DataConfig

DATASETS = ("kvasir-seg", "cvc-clinicdb", "isic2017", "isic2018", "pranet")


@dataclass(kw_only=True)
class LookConfig:
    """How much is looked at, and where the overlays go."""

    sheet: Path | None = None
    """PNG for twelve overlays of masks on images; None is data_sheet.png in this folder."""
    samples: int = 64
    """Files per split that are decoded; 0 decodes all of them."""
    val_fraction: float = 0.1
    """Share of the images held out where the data has no val of its own."""
    seed: int = 0
    """Seed of the split."""


@dataclass(kw_only=True)
class InfoConfig(DataConfig, LookConfig):
    """What a data set is understood as: layout, splits, what masks hold, what was skipped."""


@dataclass(kw_only=True)
class DownloadConfig:
    """Fetch a public data set, check its digest and unpack it."""

    name: Literal["kvasir-seg", "cvc-clinicdb", "isic2017", "isic2018", "pranet"]
    """Which one."""
    out: Path = Path("data")
    """Folder that gets a folder of the set's name."""
