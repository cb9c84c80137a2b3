"""Decoded, resized samples on disk, mapped into memory: for sets that are larger than it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastclip.transfuse.data import decoder
from fastclip.transfuse.data.names import Item
from fastclip.transfuse.data.options import ReadOptions
from fastclip.transfuse.data.samples import DataError, Samples, Size, printable, raise_problems
from fastclip.transfuse.data.summary import left_out_note

VERSION = 1  # raised when the same files are read into other pixels
PARTS = ("images", "masks", "ignored")


def read_items(items: list[Item], size: Size, options: ReadOptions, problems: list[str]) -> Samples:
    """As `decoder.read_items`, from `options.cache` where the same files were read before.

    An entry is a folder named by a digest of the contents of all files, the size and the options.
    It is filled under another name and renamed when whole: two processes may do that at once.
    """
    assert options.cache is not None
    if not options.skip_bad:
        raise_problems(problems)
    entry = options.cache / _digest(items, size, options)
    if not (entry / "samples.json").is_file():
        _fill(entry, items, size, options)
    samples = _open(entry)
    if problems:
        samples.left_out[:0] = problems
        samples.notes.append(left_out_note(len(problems)))
    return samples


def _digest(items: list[Item], size: Size, options: ReadOptions) -> str:
    """Of everything that the pixels depend on."""
    files = sorted({plane.file for item in items for plane in (item.image, *item.masks)})
    digests: dict[Path, str] = {}

    def read(row: int) -> None:
        try:
            digests[files[row]] = hashlib.sha256(files[row].read_bytes()).hexdigest()
        except OSError as error:
            digests[files[row]] = f"unreadable: {error.errno}"  # its name is reported later

    decoder.in_threads(read, len(files))
    settings = asdict(options)
    for name in ("cache", "fold", "group_by"):
        del settings[name]
    rows = [
        [item.name, item.set, item.per_class]
        + [[digests[plane.file], plane.index] for plane in (item.image, *item.masks)]
        for item in items
    ]
    text = json.dumps([VERSION, size, settings, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fill(entry: Path, items: list[Item], size: Size, options: ReadOptions) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    except OSError as error:
        raise DataError(f"--cache {printable(entry.parent)}: {error.strerror}") from error

    def allocate(count: int, size: Size, options: ReadOptions) -> decoder.Arrays:
        images = _create(beside / "images.npy", (count, 3, *size))
        masks = _create(beside / "masks.npy", (count, options.masks.channels, *size))
        if options.masks.ignore is None:
            return decoder.Arrays(images, masks, None)
        return decoder.Arrays(images, masks, _create(beside / "ignored.npy", (count, 1, *size)))

    try:
        samples = decoder.read_items(items, size, options, [], allocate)
        about = {key: getattr(samples, key) for key in ("names", "notes", "sets", "left_out")}
        (beside / "samples.json").write_text(json.dumps(about))
        os.rename(beside, entry)
    except OSError as error:
        if not (entry / "samples.json").is_file():  # or another process was first
            raise DataError(
                f"--cache {printable(entry.parent)} cannot be written ({error}): make room, or "
                "choose another"
            ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _create(file: Path, shape: tuple[int, ...]) -> Tensor:
    """A new array that is mapped to a file."""
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # or a full disk would end the process at a write
        with open(file, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return torch.from_numpy(array)


def _open(entry: Path) -> Samples:
    def part(name: str) -> Tensor | None:
        file = entry / f"{name}.npy"
        if not file.is_file():
            return None
        # "c": pages are shared and read on demand, and a write would stay in this process. Rows
        # beyond the names are those of files that were left out.
        return torch.from_numpy(np.load(file, mmap_mode="c")[: len(about["names"])])

    try:
        about = json.loads((entry / "samples.json").read_text())
        images, masks, ignored = map(part, PARTS)
        assert images is not None
        assert masks is not None
        notes = [*about["notes"], f"decoded earlier, in {printable(entry)}"]
        return Samples(
            images, masks, about["names"], "", ignored, notes, about["sets"], about["left_out"]
        )
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise DataError(f"{printable(entry)} is damaged ({error}): remove that folder") from error
