"""Finds the pairs of a data set as it lies, in any known layout, or says what lies there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fastclip.transfuse.data.arrays import find_arrays
from fastclip.transfuse.data.coco import find_coco
from fastclip.transfuse.data.formats import VOLUME_SUFFIXES, Plane, reading, suffix_of
from fastclip.transfuse.data.lists import LIST_SUFFIXES, find_listed
from fastclip.transfuse.data.medical import count_slices
from fastclip.transfuse.data.names import Found, Item, children, list_files, split_of
from fastclip.transfuse.data.pairs import descend, find_pairs, find_unit
from fastclip.transfuse.data.samples import DataError, printable

COCO_NAME = "_annotations.coco.json"
EXPECTED = (
    "images/ and masks/ (alone, or in train/ and val/), one folder of NAME.jpg and NAME_mask.png, "
    "a folder per case, data_train.npy and mask_train.npy, a .csv of image,mask[,split], or a COCO "
    ".json; docs/data.md lists all"
)


def find(data: str) -> Found:
    """The pairs of a folder or of a list, with what was skipped and what should be a pair.

    Raises:
        DataError: nothing there, or no known layout.
    """
    root = Path(data)
    if root.is_file():
        found = _find_file(root)
    elif root.is_dir():
        found = _find_folder(descend(root))
    else:
        raise DataError(f"--data {printable(data)}: no such folder (or say 'synthetic')")
    items = [part for item in found.items for part in _slices(item, found)]
    found.items = [replace(item, root=printable(data)) for item in items]
    return found


def _find_file(file: Path) -> Found:
    if file.suffix.lower() in LIST_SUFFIXES:
        return find_listed(file)
    if file.suffix.lower() == ".json":
        return find_coco(file)
    raise DataError(
        f"--data {printable(file)}: expected a folder, a list ({', '.join(LIST_SUFFIXES)}) or a "
        "COCO .json"
    )


def _find_folder(root: Path) -> Found:
    kids = children(root)
    found = find_arrays(root) or _find_isic(kids) or _find_splits(kids)
    if found is None or not any(item.split == "train" for item in found.items):
        unit = _find_one(root)
        if unit is not None and found is not None:
            unit.merge(found)
        found = unit or found
    found = found or _find_sets(kids)
    if found is None and len(kids) == 1:
        return _find_folder(kids[0])
    if found is None:
        listed = list_files(root)
        raise DataError(
            f"--data {printable(root)}: no known layout. It holds {len(kids)} folders"
            f"{': ' * bool(kids)}{printable(', '.join(kid.name for kid in kids[:8]))} and "
            f"{len(listed.files)} images; expected {EXPECTED}"
        )
    return found


def _find_one(folder: Path) -> Found | None:
    if (folder / COCO_NAME).is_file():
        return find_coco(folder / COCO_NAME)
    return find_unit(folder)


def _find_sets(kids: list[Path]) -> Found | None:
    """Several data sets side by side, each under its folder's name."""
    found = Found("a folder per data set", [])
    for kid in kids:
        if part := _find_one(kid):
            found.layout = f"a folder per data set, each {part.layout}"
            found.merge(part, set_name=printable(kid.name))
    return found if found.items or found.problems else None


def _find_splits(kids: list[Path]) -> Found | None:
    """train/, val/ and test/ under any of their names; CamVid's trainannot/ beside train/."""
    found = Found("", [])
    layouts: list[str] = []
    named = {kid.name.lower(): kid for kid in kids}
    for kid in kids:
        split = split_of(kid.name)
        if split is None:
            continue
        if annot := named.get(f"{kid.name.lower()}annot"):
            part: Found | None = find_pairs(kid, annot)
        else:
            part = _find_one(kid) or _find_sets(children(kid))
        if part is None:
            found.skipped[f"folder {printable(kid.name)}/ without pairs"] += 1
            continue
        layouts.append(f"{printable(kid.name)}/ ({part.layout})")
        found.merge(part, split)
    found.layout = ", ".join(layouts)
    return found if layouts else None


def _find_isic(kids: list[Path]) -> Found | None:
    """ISIC 2016, 2017 and 2018 as their archives unpack."""
    found = Found("ISIC as the archive unpacks", [])
    split = r"(training|train|validation|test)(?:_v2)?"
    for kid in kids:
        images = re.search(rf"(?i)is(?:ic|bi).*(\d{{4}}).*_{split}_(?:data|input)$", kid.name)
        if images is None:
            continue
        ending = rf"(?i){images[1]}.*_{images[2]}(?:_v2)?_(?:part1_|task1_)?groundtruth$"
        masks = [k for k in kids if re.search(ending, k.name)]
        if len(masks) != 1:
            found.skipped[f"folder {printable(kid.name)}/ without its GroundTruth"] += 1
            continue
        found.merge(find_pairs(kid, masks[0]), split_of(images[2]))
    return found if found.items or found.problems else None


def _slices(item: Item, found: Found) -> list[Item]:
    """One item per slice where the image is a volume; all of them on one side of a split."""
    if suffix_of(item.image.file) not in VOLUME_SUFFIXES:
        return [item]
    try:
        with reading(item.image):
            files = [item.image.file, *(plane.file for plane in item.masks)]
            counts = [count_slices(file) for file in files]
        if len(set(counts)) > 1:
            names = ", ".join(f"{printable(f)} {n}" for f, n in zip(files, counts, strict=True))
            raise DataError(f"slices of {names}: image and mask must have as many")
    except DataError as error:
        found.problem(str(error), item.split)
        return []
    return [
        replace(
            item,
            name=f"{item.name}/{index:04d}",
            image=Plane(item.image.file, index),
            masks=tuple(Plane(plane.file, index) for plane in item.masks),
        )
        for index in range(counts[0])
    ]
