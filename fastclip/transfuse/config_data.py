"""What the command line asks for about data: the flags that train, evaluate and info share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastclip.transfuse.data.options import MaskOptions, ReadOptions, parse_fold

MASK_FLAGS = ("mask_colors", "classes", "instances", "invert", "ignore", "soft")
DATASETS = ("kvasir-seg", "cvc-clinicdb", "isic2017", "isic2018", "pranet")


@dataclass(kw_only=True)
class DataConfig:
    """How files are read, where they do not say it themselves."""

    data: str | tuple[str, ...]
    """Folder or folders of images and masks in any layout of docs/data.md; a .csv or .txt of
    image,mask[,split]; a COCO .json; or the word 'synthetic'."""
    mask_colors: tuple[str, ...] = ()
    """'#rrggbb' of the object in coloured masks; of class 1, 2, ... with --classes.
    'alpha' reads the alpha channel."""
    classes: int | None = None
    """Masks hold the numbers of so many classes, from 1; 0 is the ground. Or a folder per class."""
    instances: Literal["union"] | None = None
    """union: masks number their objects, and every number above 0 is object."""
    invert: bool = False
    """The object is the dark part of the masks."""
    ignore: int | None = None
    """Stored value of mask pixels that count nowhere, e.g. 255."""
    soft: bool = False
    """Gray values of masks are shares of the object, however many grays there are."""
    intensity: Literal["dtype", "percentile"] = "dtype"
    """How images of more than 8 bits become 8: by the range of their dtype (0 to 1 for floats),
    or each by its own 0.5th and 99.5th percentile."""
    skip_bad: bool = False
    """Leave out files that cannot be read or have no partner, and list them in skipped.csv."""
    cache: Path | None = None
    """Folder that keeps decoded, resized images on disk, for sets larger than the memory."""
    fold: str | None = None
    """K/N: hold out the K-th of N parts instead of --val-fraction."""
    group_by: str | None = None
    """Regular expression on names: images in which it matches the same text stay together."""

    def mask_options(self) -> MaskOptions:
        """The meaning of masks; ValueError for a wrong option."""
        options = MaskOptions(
            colors=tuple(self.mask_colors),
            classes=self.classes,
            instances=self.instances,
            invert=self.invert,
            ignore=self.ignore,
            soft=self.soft,
        )
        options.check()
        return options

    def read_options(self) -> ReadOptions:
        """All of it, checked."""
        if not self.data:
            raise ValueError("--data must name a folder, a list or 'synthetic'")
        return ReadOptions(
            masks=self.mask_options(),
            intensity=self.intensity,
            skip_bad=self.skip_bad,
            cache=self.cache,
            fold=parse_fold(self.fold),
            group_by=self.group_by,
        )


@dataclass(kw_only=True)
class InfoConfig(DataConfig):
    """What a data set is understood as: layout, splits, what masks hold, what was skipped."""

    sheet: Path | None = None
    """PNG for twelve overlays of masks on images; None is data_sheet.png in this folder."""
    samples: int = 64
    """Files per split that are decoded; 0 decodes all of them."""
    val_fraction: float = 0.1
    """Share of the images held out where the data has no val of its own."""
    seed: int = 0
    """Seed of the split."""


@dataclass(kw_only=True)
class DownloadConfig:
    """Fetch a public data set, check its digest and unpack it."""

    name: Literal["kvasir-seg", "cvc-clinicdb", "isic2017", "isic2018", "pranet"]
    """Which one."""
    out: Path = Path("data")
    """Folder that gets a folder of the set's name."""
