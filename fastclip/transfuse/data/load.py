"""Loads a part of a data set: found, chosen, decoded and resized once, kept as uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastclip.transfuse.data import cache, layouts
from fastclip.transfuse.data.decoder import read_items
from fastclip.transfuse.data.names import Found
from fastclip.transfuse.data.options import ReadOptions
from fastclip.transfuse.data.samples import (
    DataError,
    Samples,
    Size,
    printable,
    raise_problems,
)
from fastclip.transfuse.data.split import Partition, select


def load_split(
    data: str | Sequence[str],
    split: str,
    size: Size,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    options: ReadOptions | None = None,
    hold_out: bool = False,
    recorded: dict[str, str] | None = None,
) -> Samples:
    """Load one part of a data set in any of the layouts of docs/data.md.

    Args:
        data: a folder, a list or a COCO json; or several of them.
        split: 'train', 'val', 'test', or 'all' (of data that is in no split).
        size: (H, W) that everything is resized to.
        seed, val_fraction, hold_out, recorded: of the split; see `Partition`.
        options: how values are read; plain binary masks where None.

    Raises:
        DataError: no such data, or more than the memory holds; or all files at once that are
            damaged, have no partner, or hold what fits no rule.
    """
    options = options or ReadOptions()
    found = find_all([data] if isinstance(data, str) else list(data))
    how = Partition(seed, val_fraction, options.fold, options.group_by, hold_out, recorded)
    items = select(found.items, split, how)
    problems = [text for text, own in found.problems if own in (None, split) or split == "all"]
    label = source_name(data)
    if not items:
        raise_problems(problems)
        raise DataError(
            f"--data {label}: no {split} data there; expected {split}/images and {split}/masks; "
            f"found {describe(found)}"
        )
    read = cache.read_items if options.cache else read_items
    samples = read(items, size, options, problems)
    notes = [f"{label} {split}: {found.layout}", *skipped_notes(found), *samples.notes]
    by_name = {item.name: item for item in items}
    return replace(
        samples,
        source=f"{label} {split}",
        notes=notes,
        items=[by_name[name] for name in samples.names],
    )


def names_of(data: str | Sequence[str], split: str, how: Partition) -> set[str]:
    """Names of one part of a data set, of which nothing is decoded."""
    found = find_all([data] if isinstance(data, str) else list(data))
    return {item.name for item in select(found.items, split, how)}


def source_name(data: str | Sequence[str]) -> str:
    """Short name of a data set, as it stands beside every number."""
    roots = [data] if isinstance(data, str) else list(data)
    return "+".join(printable(Path(root).name or root) for root in roots)


def find_all(roots: list[str]) -> Found:
    """What lies in one root, or in several under a name for each."""
    parts = [layouts.find(root) for root in roots]
    if len(parts) == 1:
        return parts[0]
    short = [printable(Path(root).name) for root in roots]
    labels = short if len(set(short)) == len(short) else [printable(root) for root in roots]
    if len(set(labels)) < len(labels):
        raise DataError(f"--data names {max(labels, key=labels.count)} more than once")
    found = Found("; ".join(f"{n}: {p.layout}" for n, p in zip(labels, parts, strict=True)), [])
    for label, part in zip(labels, parts, strict=True):
        found.merge(part, set_name=label)
    return found


def describe(found: Found) -> str:
    """How many pairs of each split were found, e.g. '8 train, 3 test'."""
    counts: dict[str, int] = {}
    for item in found.items:
        counts[item.split or "unsplit"] = counts.get(item.split or "unsplit", 0) + 1
    return ", ".join(f"{count} {split}" for split, count in counts.items()) or "no pairs"


def skipped_notes(found: Found) -> list[str]:
    """What lies beside the pairs, by kind, in one line."""
    if not found.skipped:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.skipped.items()))
    return [f"skipped, as part of no pair: {kinds}"]
