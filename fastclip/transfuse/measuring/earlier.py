"""Scores of an earlier evaluation, read from its CSV file."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.measuring.metrics import METRICS
from fastclip.transfuse.measuring.summary import SIZES, Measured

SHOWN = 5  # names that an error lists


def read_scores(file: Path, names: list[str], sets: list[str], groups: list[str]) -> Measured:
    """Images as `fastclip evaluate --csv` has scored them before.

    Args:
        file: what it has written.
        names: the images to find, and their order; what the file holds besides is not looked at.
        sets: of each, or none.
        groups: of each.

    Raises:
        ValueError: another file, an image that is not in it, or a score that is no number.
    """
    rows = _rows(file)
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(
            f"--against {printable(file)} has no scores of {len(missing)} of {len(names)} images "
            f"({', '.join(map(printable, missing[:SHOWN]))}): evaluate both on the same images"
        )
    kept = [rows[name] for name in names]
    tables = {}
    for size in SIZES:
        found = [name for name in METRICS if f"{name}_{size}" in kept[0]]
        tables[size] = {name: _column(kept, f"{name}_{size}", file) for name in found}
    match = re.fullmatch(r"(\d+)x(\d+)", kept[0].get("network_size", ""))
    size_seen = (int(match[1]), int(match[2])) if match else None
    return Measured(names, sets, groups, tables, size_seen)


def _rows(file: Path) -> dict[str, dict[str, str]]:
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            rows = {row.get("image", ""): row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--against {printable(file)} cannot be read ({error})") from error
    if "image" not in columns or "dice_own_size" not in columns:
        raise ValueError(
            f"--against {printable(file)} is not what `fastclip evaluate --csv` writes: it lacks "
            "the columns image and dice_own_size"
        )
    return rows


def _column(rows: list[dict[str, str]], name: str, file: Path) -> np.ndarray:
    """Float64 [N, 1]."""
    try:
        values = np.array([[float(row[name])] for row in rows])
    except (TypeError, ValueError) as error:
        raise ValueError(f"--against {printable(file)}, column {name}: {error}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"--against {printable(file)}, column {name}: a score is not finite")
    return values
