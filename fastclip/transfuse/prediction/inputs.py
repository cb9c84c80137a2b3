"""Which images `fastclip predict` is asked for, and under which names their results go."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fastclip.transfuse.data.formats import (
    IMAGE_SUFFIXES,
    VOLUME_SUFFIXES,
    Plane,
    stem_of,
    suffix_of,
)
from fastclip.transfuse.data.medical import count_slices
from fastclip.transfuse.data.names import list_files
from fastclip.transfuse.data.samples import DataError, printable


@dataclass
class Inputs:
    """Images by the path of their results below the output folder, without an ending."""

    planes: dict[Path, Plane] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def find_images(asked: tuple[str, ...], out: Path, recursive: bool) -> Inputs:
    """The images of files, folders, patterns and lists of files.

    Args:
        asked: what the command line names.
        out: folder of the results, nothing of which is an input.
        recursive: also look into the folders below.

    Raises:
        DataError: nothing there; `out` is where the images are; two images would share a result.
    """
    found = Inputs()
    for text in asked:
        _add(found, text, out, recursive)
    if not found.planes:
        names = " ".join(map(printable, asked))
        kinds = ", ".join(f"{n} {kind}" for kind, n in found.skipped.items()) or "nothing"
        deeper = "" if recursive else "; --recursive looks into sub-folders"
        raise DataError(
            f"--images {names} holds no images ({', '.join(IMAGE_SUFFIXES)}), but {kinds}{deeper}"
        )
    return found


def _add(found: Inputs, text: str, out: Path, recursive: bool) -> None:
    path = Path(text)
    if path.is_dir():
        listing = list_files(path, deep=recursive)
        if listing.problems:
            raise DataError(f"{listing.problems[0].text} (both would be written to one file)")
        found.skipped.update(listing.skipped)
        files = list(listing.files.values())
        base = path
    elif path.suffix.lower() == ".txt" and path.is_file():
        lines = path.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
        files = [path.parent / line.strip() for line in lines if line.strip()]
        base = _common_folder(files)
    elif path.exists() or not glob.has_magic(text):
        files, base = [path], path.parent
        if not path.exists() and not path.is_symlink():
            raise DataError(f"--images {printable(text)}: no such file or folder")
    else:
        files = sorted(Path(name) for name in glob.glob(text, recursive=recursive))
        files = [file for file in files if not file.is_dir()]
        base = _common_folder(files)
    inside = out.resolve()
    for file in files:
        folder = file.parent.resolve()
        if folder == inside and (not path.is_dir() or path.resolve() == inside):
            raise DataError(
                f"--out {printable(out)} is the folder of {printable(file.name)}: results there "
                "would be taken for images; choose another"
            )
        if inside in (folder, *folder.parents):
            found.skipped["results of an earlier call"] += 1
        else:
            _add_file(found, file, base)


def _common_folder(files: list[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files])) if files else Path()


def _add_file(found: Inputs, file: Path, base: Path) -> None:
    target = Path(os.path.relpath(file.parent, base)) / stem_of(file)
    planes = {target: Plane(file)}
    if suffix_of(file) in VOLUME_SUFFIXES:
        planes = {target / f"{i:04d}": Plane(file, i) for i in range(count_slices(file))}
    for name, plane in planes.items():
        other = found.planes.setdefault(name, plane)
        if other != plane:
            raise DataError(
                f"{other} and {plane} would be written to one file, {printable(name)}: predict "
                "them apart"
            )
