"""Which side of a split a sample is on: as its folder says, or by a hash of its name."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastclip.transfuse.data.names import Item
from fastclip.transfuse.data.samples import DataError, printable

SHOWN = 5  # names that an error lists


@dataclass(frozen=True)
class Partition:
    """How samples without a split of their own are parted into train and val.

    Args:
        seed: another seed gives another split.
        val_fraction: share of the names that is held out.
        fold: (k, n) holds out the k-th of n parts instead.
        group_by: regular expression; names in which it matches the same text (of its first group,
            where it has one) stay on one side.
        hold_out: part the training data where the data has no val of its own.
        recorded: side of each sample by name, as an earlier run has written it.
    """

    seed: int = 0
    val_fraction: float = 0.1
    fold: tuple[int, int] | None = None
    group_by: str | None = None
    hold_out: bool = False
    recorded: dict[str, str] | None = None


def position(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def select(items: list[Item], split: str, how: Partition) -> list[Item]:
    """The items of 'train', 'val', 'test' or 'all', by name; empty where there are none."""
    if how.recorded is not None and split != "all":
        return _recorded(items, split, how.recorded)
    own = [item for item in items if item.split == split]
    loose = [item for item in items if item.split is None]
    if split == "all":
        return loose or items
    if how.hold_out and not any(item.split == "val" for item in items):
        loose += [item for item in items if item.split == "train"]
        own = [item for item in own if item.split != "train"]
    if split == "test" or (split == "val" and own):
        return own
    if split == "train" and any(item.split == "val" for item in items):
        return own + loose
    if split == "train" and own:
        return own
    return _part(loose, split, how) if loose else []


def _part(items: list[Item], split: str, how: Partition) -> list[Item]:
    group = grouping(items, how.group_by)
    at = {name: position(name, how.seed) for name in {group(item) for item in items}}
    if len(at) < 2:
        what = "image(s)" if how.group_by is None else "group(s) of images"
        raise DataError(f"{len(at)} {what} cannot be parted into train and val: add images")
    if how.fold is None:
        held_out = {name for name, value in at.items() if value < how.val_fraction}
        # Of a few images none may lie below: the lowest is held out then.
        held_out = held_out or {min(at, key=lambda name: at[name])}
    else:
        k, n = how.fold
        held_out = {name for name, value in at.items() if int(value * n) == k - 1}
    if not held_out or len(held_out) == len(at):
        flag = (
            f"--fold {how.fold[0]}/{how.fold[1]}"
            if how.fold
            else (f"--val-fraction {how.val_fraction:g}")
        )
        side = "val" if not held_out else "train"
        raise DataError(
            f"{flag} leaves none of {len(at)} names for {side}: give another one, or another --seed"
        )
    return [item for item in items if (group(item) in held_out) == (split == "val")]


def grouping(items: list[Item], pattern: str | None) -> Callable[[Item], str]:
    """What stays together: the name itself, or the part of it that the pattern matches."""
    if pattern is None:
        return lambda item: item.key
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--group-by {pattern!r} is no regular expression ({error})") from error
    found = {item.name: compiled.search(item.name) for item in items}
    without = [name for name, match in found.items() if match is None]
    if without:
        raise DataError(
            f"--group-by {pattern!r} matches nothing in {len(without)} names: "
            f"{', '.join(without[:SHOWN])}"
        )
    groups = {name: match[match.re.groups > 0] or "" for name, match in found.items() if match}
    return lambda item: groups[item.name]


def _recorded(items: list[Item], split: str, recorded: dict[str, str]) -> list[Item]:
    present = {item.name: item for item in items}
    wanted = [name for name, side in recorded.items() if side == split]
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(
            f"{len(missing)} {split} image(s) of the run are not in the data any more: "
            f"{', '.join(missing[:SHOWN])}; put them back, or start a new run"
        )
    return [present[name] for name in wanted]


def read_split(file: Path) -> dict[str, str] | None:
    """Side of each sample by name, of a split.csv; None where there is none."""
    if not file.is_file():
        return None
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = {row["image"]: row["split"] for row in csv.DictReader(stream)}
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise DataError(f"{printable(file)} cannot be read ({error}): remove it") from error
    return rows
