"""Decodes and resizes samples on all cores; every file that cannot be read is listed at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastclip.transfuse.data.images import read_image
from fastclip.transfuse.data.masks import read_mask
from fastclip.transfuse.data.names import Item
from fastclip.transfuse.data.options import ReadOptions
from fastclip.transfuse.data.samples import DataError, Samples, Size, raise_problems
from fastclip.transfuse.data.summary import Report, check_set, left_out_note, summarise


class Arrays(NamedTuple):
    """uint8 [N, 3, H, W], [N, C, H, W], and [N, 1, H, W] where some pixels are ignored."""

    images: Tensor
    masks: Tensor
    ignored: Tensor | None


@dataclass
class OneSample:
    """uint8 [3, H, W], [C, H, W], [1, H, W] or None, and how they were read."""

    image: np.ndarray
    masks: np.ndarray
    ignored: np.ndarray | None
    report: Report


Allocate = Callable[[int, Size, ReadOptions], Arrays]


def in_memory(count: int, size: Size, options: ReadOptions) -> Arrays:
    """Arrays for so many samples; DataError where they do not fit."""
    ignore = options.masks.ignore is not None
    channels = 3 + options.masks.channels + ignore
    needed, free = count * size[0] * size[1] * channels, _available_bytes()
    if free is not None and needed > 0.8 * free:
        raise DataError(
            f"{count} images at {size[0]}x{size[1]} need {needed / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free: use a smaller --size, fewer images, or --cache FOLDER"
        )
    images = torch.empty(count, 3, *size, dtype=torch.uint8)
    masks = torch.empty(count, options.masks.channels, *size, dtype=torch.uint8)
    return Arrays(images, masks, torch.zeros_like(masks[:, :1]) if ignore else None)


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: no check
        return None
    return next((int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable")), None)


def read_items(
    items: list[Item],
    size: Size,
    options: ReadOptions,
    problems: list[str],
    allocate: Allocate = in_memory,
) -> Samples:
    """Decode and resize all items.

    Args:
        items: what to read.
        size: (H, W) of the result.
        options: how values are read, and whether bad files are left out.
        problems: what is wrong already; reported together with bad files.

    Raises:
        DataError: all that is wrong, unless `options.skip_bad`; or masks contradict each other.
    """
    arrays = allocate(len(items), size, options)
    reports: list[Report | None] = [None] * len(items)
    errors: dict[int, str] = {}

    def load(row: int) -> None:
        try:
            sample = read_sample(items[row], size, options)
        except DataError as error:
            errors[row] = str(error)
            return
        arrays.images[row] = torch.from_numpy(sample.image)
        arrays.masks[row] = torch.from_numpy(sample.masks)
        if arrays.ignored is not None and sample.ignored is not None:
            arrays.ignored[row] = torch.from_numpy(sample.ignored)
        reports[row] = sample.report

    in_threads(load, len(items))
    bad = [*problems, *(errors[row] for row in sorted(errors))]
    if not options.skip_bad or len(errors) == len(items):
        raise_problems(bad)
    check_set(items, reports, options)
    if errors:
        kept = [row for row in range(len(items)) if row not in errors]
        arrays, items = _compact(arrays, kept), [items[row] for row in kept]
    return _samples(arrays, items, [report for report in reports if report], options, bad)


def _samples(
    arrays: Arrays, items: list[Item], reports: list[Report], options: ReadOptions, bad: list[str]
) -> Samples:
    names = [item.name for item in items]
    notes = summarise(names, reports, options)
    if bad:
        notes.append(left_out_note(len(bad)))
    sets = [item.set for item in items] if any(item.set for item in items) else []
    return Samples(arrays.images, arrays.masks, names, "", arrays.ignored, notes, sets, bad)


def _compact(arrays: Arrays, kept: list[int]) -> Arrays:
    """Move the rows that were read to the front, in place: the arrays may be a file's."""
    parts = []
    for part in arrays:
        if part is not None:
            for new, old in enumerate(kept):
                part[new] = part[old]
        parts.append(None if part is None else part[: len(kept)])
    images, masks, ignored = parts
    assert images is not None
    assert masks is not None
    return Arrays(images, masks, ignored)


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work` for each row on all cores; the first exception ends it."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for _ in pool.map(work, range(count)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_sample(item: Item, size: Size, options: ReadOptions) -> OneSample:
    """Decode one pair and bring it to `size`; DataError names the file that cannot be used."""
    image = read_image(item.image, options.intensity)
    mask = read_mask(item.masks, options.masks, item.per_class)
    if image.pixels.shape[:2] != mask.maps.shape[1:]:
        one, other = image.pixels.shape, mask.maps.shape[1:]
        raise DataError(
            f"{item.image} is {one[0]}x{one[1]} and {item.masks[0]} is {other[0]}x{other[1]} "
            "(HxW): a mask must have its image's size"
        )
    if len(mask.maps) != options.masks.channels:
        raise DataError(
            f"{item.masks[0]}: {len(mask.maps)} files, one per class: ask for --classes "
            f"{len(mask.maps)}, or give one of them as the masks"
        )
    shares = (mask.maps >= 128).mean((1, 2))
    report = Report(mask.kind, shares.tolist(), image.notes, item.root)
    small = np.stack([resize(Image.fromarray(part), size) for part in mask.maps])
    ignored = None
    if mask.ignored is not None:
        report.ignored_share = float(mask.ignored.mean())
        # A pixel that an ignored one has a part in is ignored.
        part = resize(Image.fromarray(mask.ignored.astype(np.uint8) * 255), size)
        ignored = ((part > 0).astype(np.uint8) * 255)[None]
    pixels = resize(Image.fromarray(image.pixels), size)
    return OneSample(pixels.transpose(2, 0, 1), small, ignored, report)


def resize(image: Image.Image, size: Size) -> np.ndarray:
    """Antialiased bilinear resize to (H, W); the array of an image that has it already."""
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image)
