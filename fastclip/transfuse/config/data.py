"""Flags about data: how files are read, what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastclip.transfuse.config.checks import require, require_at_least
from fastclip.transfuse.data.options import MaskOptions, ReadOptions, parse_fold

MASK_FLAGS = ("mask_colors", "classes", "instances", "invert", "ignore", "soft")


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
class TrainingDataConfig(DataConfig):
    """What is learned from, how files are read, and what is held out for validation."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = (
        # Not `data`: what it holds is compared, wherever that lies.
        *("intensity", "skip_bad", "fold", "group_by", "val_fraction", "synthetic_images"),
        *MASK_FLAGS,
    )

    data: str | tuple[str, ...] = "synthetic"
    """Folder or folders of images and masks in any layout of docs/data.md, e.g. images/ and masks/
    alone or in train/ and val/; a .csv or .txt of image,mask[,split]; a COCO .json; or the word
    'synthetic' for lesion-like images made on the fly."""
    val_fraction: float = 0.1
    """Share of the images held out where the data has no val of its own; a name stays on its side
    when others are added."""
    synthetic_images: int = 512
    """Training images of --data synthetic; an eighth as many are made for validation."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        self.read_options()
        require_at_least(self, 1, "synthetic_images")
        require(self, "val_fraction", 0 < self.val_fraction < 1, "between 0 and 1")
