"""`fastclip info`: what a data set is understood as, before anyone trains on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastclip.transfuse.config.preparation import InfoConfig
from fastclip.transfuse.data.decoder import OneSample, in_threads, read_sample
from fastclip.transfuse.data.load import describe, find_all, skipped_notes, source_name
from fastclip.transfuse.data.names import Found, Item
from fastclip.transfuse.data.options import ReadOptions
from fastclip.transfuse.data.samples import LISTED, DataError, Size, printable
from fastclip.transfuse.data.split import Partition, select
from fastclip.transfuse.data.summary import Report, check_set, summarise
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.recording.pictures import TRUTH, tint_all, write_png

SIZE: Size = (192, 256)  # of the overlays
OVERLAYS, COLUMNS = 12, 4


def run_info(config: InfoConfig) -> int:
    """Print what was understood and what was not; 1 where something is wrong with the data."""
    with usage_errors():
        options = config.read_options()
        if config.data == "synthetic":
            raise ValueError("--data synthetic is made on the fly: there is nothing to look at")
        if config.samples < 0:
            raise ValueError(f"--samples must be 0 or more, got {config.samples}")
        roots = [config.data] if isinstance(config.data, str) else list(config.data)
        found = find_all(roots)
        how = Partition(
            config.seed, config.val_fraction, options.fold, options.group_by, hold_out=True
        )
        parts = _parts(found, how)
    rows = [("data", source_name(config.data)), ("layout", found.layout)]
    rows.append(("pairs", f"{len(found.items)} ({describe(found)})"))
    rows += [(split, _count(items)) for split, items in parts.items()]
    rows += [("beside", note) for note in skipped_notes(found)]
    problems = [problem.text for problem in found.problems]
    shown: list[tuple[Item, OneSample]] = []
    for split, items in parts.items():
        read, errors = _decode(items, config.samples, options)
        rows += [(split, note) for note in _notes(read, len(items), options, errors)]
        problems += errors
        shown += read[:: max(1, len(read) * len(parts) // OVERLAYS)]
    for name, text in rows:
        print(printable(f"{name:8} {text}"))
    if shown:
        sheet = config.sheet or Path("data_sheet.png")
        write_png(sheet, overlay_sheet([sample for _, sample in shown[:OVERLAYS]]))
        print(f"{'sheet':8} {printable(sheet)}: {min(len(shown), OVERLAYS)} masks on their images")
    for text in problems[:LISTED]:
        print(printable(f"{'PROBLEM':8} {text}"))
    if len(problems) > LISTED:
        print(f"{'PROBLEM':8} and {len(problems) - LISTED} more")
    return 1 if problems else 0


def _parts(found: Found, how: Partition) -> dict[str, list[Item]]:
    """The items of each split that the trainer would see; everything where none can be made."""
    try:
        parts = {split: select(found.items, split, how) for split in ("train", "val", "test")}
    except DataError as error:
        found.problem(str(error))
        parts = {"all": found.items}
    return {split: items for split, items in parts.items() if items}


def _count(items: list[Item]) -> str:
    sets: dict[str, int] = {}
    for item in items:
        sets[item.set] = sets.get(item.set, 0) + 1
    each = ", ".join(f"{name} {count}" for name, count in sets.items() if name)
    return f"{len(items)} pairs{f' ({each})' if each else ''}"


def _decode(
    items: list[Item], most: int, options: ReadOptions
) -> tuple[list[tuple[Item, OneSample]], list[str]]:
    """Decode all items, or some that are spread evenly; and what is wrong with others."""
    step = len(items) / most if 0 < most < len(items) else 1
    chosen = [items[int(row * step)] for row in range(int(len(items) / step))]
    read: dict[int, OneSample] = {}
    errors: dict[int, str] = {}

    def load(row: int) -> None:
        try:
            read[row] = read_sample(chosen[row], SIZE, options)
        except DataError as error:
            errors[row] = str(error)

    in_threads(load, len(chosen))
    return [(chosen[row], read[row]) for row in sorted(read)], [errors[r] for r in sorted(errors)]


def _notes(
    read: list[tuple[Item, OneSample]], count: int, options: ReadOptions, errors: list[str]
) -> list[str]:
    tried = len(read) + len(errors)
    notes = [] if tried == count else [f"{tried} of {count} decoded (--samples 0 decodes all)"]
    if not read:
        return notes
    items, samples = zip(*read, strict=True)
    reports: list[Report] = [sample.report for sample in samples]
    try:
        check_set(list(items), reports, options)
    except DataError as error:
        errors.append(str(error))
    return notes + summarise([item.name for item in items], reports, options)


def overlay_sheet(samples: list[OneSample]) -> np.ndarray:
    """Masks drawn on their images, in rows of four: uint8 [rows * H, 4 * W, 3]."""
    height, width = SIZE
    rows = -(-len(samples) // COLUMNS)
    sheet = np.full((rows * height, COLUMNS * width, 3), 255, np.uint8)
    for index, sample in enumerate(samples):
        image = np.ascontiguousarray(sample.image.transpose(1, 2, 0))
        top, left = index // COLUMNS * height, index % COLUMNS * width
        drawn = tint_all(image, sample.masks >= 128, TRUTH)
        sheet[top : top + height, left : left + width] = drawn
    return sheet
