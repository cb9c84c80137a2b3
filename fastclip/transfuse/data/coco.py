"""Masks drawn from a COCO json: needs pycocotools, of the [medical] extra."""

from __future__ import annotations

import contextlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fastclip.transfuse.data.formats import CLASSES, OVERLAP, Decoded, Plane, optional, reading
from fastclip.transfuse.data.names import Found, Item, image_folder
from fastclip.transfuse.data.samples import DataError, printable


def find_coco(file: Path) -> Found:
    """The images of a COCO file; they lie beside it, or in a folder `images` there or above."""
    with reading(file):
        coco = _coco(str(file), file.stat().st_mtime_ns)
    categories = len(coco.getCatIds())
    found = Found(f"COCO json of {categories} categories, {printable(file.name)}", [])
    folders = [file.parent]
    for parent in (file.parent, file.parent.parent):
        folders += sorted(f for f in parent.iterdir() if f.is_dir() and image_folder(f.name))
    for record in coco.loadImgs(coco.getImgIds()):
        name = str(record["file_name"])
        image = next((f / name for f in folders if (f / name).is_file()), folders[0] / name)
        stem = printable(Path(name).with_suffix(""))
        planes = (Plane(file, int(record["id"])),)
        found.items.append(Item(stem, Plane(image), planes, Path(stem).name))
    if not found.items:
        raise DataError(f"{printable(file)} lists no images")
    return found


def read_annotations(plane: Plane) -> Decoded:
    """Numbers of the categories, 1, 2, ... in the order of their ids, [H, W]."""
    coco = _coco(str(plane.file), plane.file.stat().st_mtime_ns)
    (record,) = coco.loadImgs([plane.index])
    order = {category: n for n, category in enumerate(sorted(coco.getCatIds()), 1)}
    pixels = np.zeros((record["height"], record["width"]), np.uint16)
    if len(order) > 255:
        raise ValueError(f"{len(order)} categories: 255 at most")
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[plane.index])):
        number, drawn = order[annotation["category_id"]], coco.annToMask(annotation) > 0
        pixels[drawn & (pixels != 0) & (pixels != number)] = OVERLAP
        pixels[drawn & (pixels != OVERLAP)] = number
    return Decoded(pixels, CLASSES if len(order) > 1 else "L", "COCO")


@lru_cache(maxsize=4)
def _coco(file: str, modified: int) -> Any:
    api = optional("pycocotools.coco", "a COCO json")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco = api.COCO(file)
        if "images" not in coco.dataset or "annotations" not in coco.dataset:
            raise ValueError("no COCO file: it has no images or no annotations")
        return coco
