"""The names that public data sets give to folders and files, and how files are matched by them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from fastclip.transfuse.data.formats import IMAGE_SUFFIXES, Plane, stem_of, suffix_of
from fastclip.transfuse.data.samples import DataError, printable

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "original", "jpegimages")
# Earlier ones win: in DRIVE `mask` is the field of view and `1st_manual` the vessels.
MASK_FOLDERS = (
    ("1st_manual",),
    *(("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "ground_truth"),),
    *(("ground truth", "groundtruth", "segmentationclass", "annot"),),
)
SPLIT_FOLDERS = {
    "train": ("train", "training", "traindataset", "stage1_train"),
    "val": ("val", "validation", "valid", "valdataset"),
    "test": ("test", "testing", "testdataset"),
}
MASK_ENDINGS = (
    *("_segmentation", "_mask", "-mask", "_Mask", "-Mask", "_masks", "_manual1", "_gt", "_GT"),
    *("_label", "_labels", "_lesion", "_matte", "_1stHO", "_groundtruth", "_annotation", "_seg"),
)
MASK_PREFIXES = ("mask_", "mask-", "Mask_", "gt_", "label_")
IMAGE_ENDINGS = ("_training", "_test", "_image", "_img", "_sat", "_orig", "_original")
# Files that lie beside pairs and belong to none: superpixels, previews, second observers.
EXTRA_ENDINGS = (
    *("_superpixels", "_thumb", "_thumbnail", "_preview", "_overlay", "_small"),
    *("_2ndHO", "_manual2"),
)


@dataclass(frozen=True)
class Item:
    """One sample before it is read: where its image and its masks lie."""

    name: str  # printable, of one set unlike any other
    image: Plane
    masks: tuple[Plane, ...]
    key: str  # what its side of a split depends on
    split: str | None = None
    set: str = ""
    per_class: bool = False
    root: str = ""


class Problem(NamedTuple):
    """A file that should be part of a pair and is not."""

    text: str
    split: str | None = None  # the part of the data that it is missing from, where known


@dataclass
class Found:
    """What a folder was understood as."""

    layout: str
    items: list[Item]
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # files of no pair, by kind

    def problem(self, text: str, split: str | None = None) -> None:
        """Note a file that should be part of a pair and is not."""
        self.problems.append(Problem(text, split))

    def merge(self, other: Found, split: str | None = None, set_name: str = "") -> None:
        """Add what was found in another folder, as part of a split or as a set of its own."""
        for item in other.items:
            name = f"{set_name}/{item.name}" if set_name else item.name
            self.items.append(
                replace(item, name=name, set=set_name or item.set, split=split or item.split)
            )
        self.problems += [Problem(text, split or own) for text, own in other.problems]
        self.skipped.update(other.skipped)


@dataclass
class Listing:
    """Files of a folder by the path below it without suffix, in order."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def split_of(name: str) -> str | None:
    """'train', 'val' or 'test' for the name of a folder or a column that means it."""
    low = name.strip().lower()
    return next((split for split, names in SPLIT_FOLDERS.items() if low in names), None)


def image_folder(name: str) -> bool:
    """Whether a folder of this name holds images."""
    return name.lower() in IMAGE_FOLDERS


def mask_rank(name: str) -> int | None:
    """How surely a folder of this name holds masks, 0 most; None where it does not."""
    low = name.lower()
    for rank, names in enumerate(MASK_FOLDERS):
        if low in names:
            return rank
    return len(MASK_FOLDERS) if low.endswith(("annot", "_groundtruth", "_ground_truth")) else None


def children(folder: Path) -> list[Path]:
    """Folders in a folder, by name; hidden ones and macOS's own left out."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


def _walk(folder: Path, deep: bool) -> Iterator[Path]:
    for base, folders, files in os.walk(folder):
        hidden = (".", "__MACOSX")
        folders[:] = sorted(f for f in folders if not f.startswith(hidden)) if deep else []
        yield from (Path(base) / name for name in sorted(files))


def list_files(folder: Path, deep: bool = False) -> Listing:
    """Image files of a folder by stem; of all folders below it with `deep`.

    Two files of one stem are a problem; files that are no images are counted by suffix.
    """
    found = Listing(folder)
    for file in _walk(folder, deep):
        if file.name.startswith("."):
            found.skipped["hidden files"] += 1
        elif suffix_of(file) not in IMAGE_SUFFIXES:
            found.skipped[f"{suffix_of(file) or 'files without suffix'}"] += 1
        elif file.is_file() or file.is_symlink():
            stem = str(file.relative_to(folder).parent / stem_of(file))
            if stem in found.files:
                first, second = printable(found.files[stem]), printable(file)
                text = f"{first} and {second} share one name: remove one of them"
                found.problems.append(Problem(text))
            else:
                found.files[stem] = file
    return found


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder by name; DataError where there is none."""
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such folder")
    files = sorted(list_files(folder).files.values())
    if not files:
        raise DataError(f"{printable(folder)} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def mask_base(stem: str) -> str | None:
    """The stem of the image whose mask this is by its ending or prefix; None where it has none."""
    parent, _, name = stem.rpartition("/")
    base = next((name[: -len(end)] for end in MASK_ENDINGS if name.endswith(end)), None)
    if base is None:
        base = next((name[len(s) :] for s in MASK_PREFIXES if name.startswith(s)), None)
    if not base:
        return None
    return f"{parent}/{base}" if parent else base


def image_base(stem: str) -> str:
    """An image's stem without an ending such as DRIVE's `_training`."""
    return next((stem[: -len(end)] for end in IMAGE_ENDINGS if stem.endswith(end)), stem)


def drop_extras(listing: Listing) -> None:
    """Take out and count files such as `_superpixels` beside the file that they belong to."""
    for stem in list(listing.files):
        for end in EXTRA_ENDINGS:
            if stem.endswith(end):
                base = stem[: -len(end)]
                related = {base, *(base + e for e in MASK_ENDINGS)}
                if related & listing.files.keys():
                    del listing.files[stem]
                    listing.skipped[f"*{end}"] += 1
                break


def match(images: dict[str, Path], masks: dict[str, Path]) -> dict[str, list[str]]:
    """Stems of the masks of each image that has any: the same stem first, then endings."""
    claims: dict[str, list[str]] = {}
    plain = {image_base(stem): stem for stem in images}
    for stem in masks:
        base = mask_base(stem)
        for candidate in (stem, base, image_base(base) if base else None, image_base(stem)):
            if candidate is None:
                continue
            image = candidate if candidate in images else plain.get(candidate)
            if image is not None:
                claims.setdefault(image, []).append(stem)
                break
    return claims


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key by which 'a10' comes after 'a9'."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
