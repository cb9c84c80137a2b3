"""The published layout of TransFuse: data_<split>.npy and mask_<split>.npy."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from fastclip.transfuse.data.formats import Plane
from fastclip.transfuse.data.names import Found, Item
from fastclip.transfuse.data.samples import DataError, printable


def find_arrays(root: Path) -> Found | None:
    """The rows of all `data_<split>.npy` of a folder: uint8 [N, H, W, 3] and [N, H, W]."""
    found = Found("arrays data_<split>.npy and mask_<split>.npy", [])
    for split in ("train", "val", "test"):
        image_file, mask_file = root / f"data_{split}.npy", root / f"mask_{split}.npy"
        if not image_file.is_file() and not mask_file.is_file():
            continue
        try:
            count = _count(image_file, mask_file)
        except DataError as error:
            found.problem(str(error), split)
            continue
        for row in range(count):
            name = f"{split}_{row:05d}"
            masks = (Plane(mask_file, row),)
            found.items.append(Item(name, Plane(image_file, row), masks, name, split))
    return found if found.items or found.problems else None


def _count(image_file: Path, mask_file: Path) -> int:
    for file, other in ((image_file, mask_file), (mask_file, image_file)):
        if not file.is_file():
            raise DataError(f"{printable(other)} has no {file.name} beside it: add it")
    images, masks = read_array(image_file), read_array(mask_file)
    if images.ndim != 4 or images.shape[-1] != 3 or masks.shape != images.shape[:3]:
        raise DataError(
            f"{printable(image_file)} is {list(images.shape)} and {printable(mask_file)} is "
            f"{list(masks.shape)}: expected [N, H, W, 3] and [N, H, W]"
        )
    if not len(images):
        raise DataError(f"{printable(image_file)} holds no images")
    return len(images)


def read_array(file: Path) -> np.ndarray:
    """Map a uint8 array of a .npy file into memory; DataError names one that is none."""
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read ({error.strerror})") from error
    return _mapped(str(file), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)  # one map for all rows of a file
def _mapped(name: str, modified: int, size: int) -> np.ndarray:
    try:
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    # Damaged headers raise OSError, ValueError, EOFError, SyntaxError, KeyError, zipfile's own.
    except Exception as error:
        raise DataError(
            f"{printable(name)} cannot be read ({printable(str(error))}): write it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{printable(name)} is an archive of arrays: write one with numpy.save")
    if array.dtype != np.uint8:
        raise DataError(f"{printable(name)} holds {array.dtype}: expected uint8")
    return array
