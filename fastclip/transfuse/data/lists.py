"""Pairs named one by one: a CSV or text file of `image,mask[,split]`."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from fastclip.transfuse.data.formats import Plane, stem_of
from fastclip.transfuse.data.names import Found, Item, split_of
from fastclip.transfuse.data.samples import DataError, printable

LIST_SUFFIXES = (".csv", ".txt", ".tsv")
ENDED_BY = {".csv": ",", ".tsv": "\t"}


def find_listed(file: Path) -> Found:
    """The pairs of a list; relative paths are relative to the list's own folder.

    Fields are parted by commas, or by tabs, or (in a .txt without either) by white space; a first
    line `image,mask[,split]` is a header; lines that start with # are left out.

    Raises:
        DataError: not a list; the wrong lines by number.
    """
    rows = _rows(file)
    found = Found(f"list of pairs, {printable(file.name)}", [])
    split_at = 2
    if rows and [field.lower() for field in rows[0][1][:2]] == ["image", "mask"]:
        header = [field.lower() for field in rows.pop(0)[1]]
        split_at = header.index("split") if "split" in header else len(header)
    names = Counter(stem_of(Path(fields[0])) for _, fields in rows)
    for number, fields in rows:
        where = f"{printable(file)} line {number}"
        if len(fields) < 2 or not fields[0] or not fields[1]:
            found.problem(f"{where}: expected image,mask[,split], got {','.join(fields)}")
            continue
        text = fields[split_at] if len(fields) > split_at else ""
        if text and split_of(text) is None:
            found.problem(f"{where}: split {text!r} is none of train, val, test")
            continue
        found.items.append(_item(file.parent, fields, split_of(text), names))
    seen = Counter(item.name for item in found.items)
    twice = [name for name, count in seen.items() if count > 1]
    for name in twice:
        found.problem(f"{printable(file)} lists {name} more than once")
    if not found.items and not found.problems:
        raise DataError(f"{printable(file)} lists no pairs: expected lines of image,mask[,split]")
    return found


def _item(folder: Path, fields: list[str], split: str | None, names: Counter[str]) -> Item:
    image, mask = folder / fields[0], folder / fields[1]
    stem = stem_of(image)
    if names[stem] > 1:  # one stem in several folders
        stem = str(Path(fields[0]).parent / stem)
    name = printable(stem)
    return Item(name, Plane(image), (Plane(mask),), printable(stem_of(image)), split)


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Line number and fields of each line that is neither empty nor a comment."""
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read ({error.strerror})") from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    lines = [(n, line) for n, line in lines if not line.lstrip().startswith("#")]
    mark = ENDED_BY.get(file.suffix.lower()) or next(
        (mark for mark in (",", "\t") if all(mark in line for _, line in lines)), None
    )
    rows = []
    for number, line in lines:
        fields = next(csv.reader([line], delimiter=mark)) if mark else line.split()
        rows.append((number, [field.strip() for field in fields]))
    return rows
