"""What a data set is in memory, and the error that names a file which cannot be part of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastclip.transfuse.data.names import Item

Size = tuple[int, int]  # H, W
LISTED = 50  # problems that one error spells out


class DataError(ValueError):
    """Data that cannot be trained on; the text names the file and what to do."""


@dataclass(frozen=True)
class Samples:
    """Decoded pairs: images uint8 [N, 3, H, W], masks uint8 [N, C, H, W] of 0..255."""

    images: Tensor
    masks: Tensor
    names: list[str]
    source: str  # as it shall stand beside every number
    ignored: Tensor | None = None  # uint8 [N, 1, H, W], 255 where a pixel counts nowhere
    notes: list[str] = field(default_factory=list)  # how the files were read, for the user
    sets: list[str] = field(default_factory=list)  # of each sample, where there are several sets
    left_out: list[str] = field(default_factory=list)  # what could not be read, and why
    items: list[Item] = field(default_factory=list)  # where each lies, for those read from files

    def __len__(self) -> int:
        return len(self.names)

    @property
    def targets(self) -> Tensor:
        """masks, with `ignored` as one more channel where there is one: [N, C or C + 1, H, W]."""
        return self.masks if self.ignored is None else torch.cat([self.masks, self.ignored], 1)

    def target(self, row: int) -> Tensor:
        """`targets` of one sample."""
        mask = self.masks[row]
        return mask if self.ignored is None else torch.cat([mask, self.ignored[row]])

    def subset(self, rows: list[int]) -> Samples:
        """The given rows, in their order."""
        names = [self.names[row] for row in rows]
        ignored = None if self.ignored is None else self.ignored[rows]
        sets = [self.sets[row] for row in rows] if self.sets else []
        items = [self.items[row] for row in rows] if self.items else []
        return replace(
            self,
            images=self.images[rows],
            masks=self.masks[rows],
            names=names,
            ignored=ignored,
            sets=sets,
            items=items,
        )


def printable(text: str | Path) -> str:
    """Text that any stream and file takes: bytes of a file name that are not UTF-8 as \\xNN."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one DataError that spells out all problems, or the first of very many."""
    lines = list(problems)
    if not lines:
        return
    way_out = "; --skip-bad goes on without what is bad"
    if len(lines) == 1:
        raise DataError(lines[0] + way_out)
    shown = "; ".join(f"({i}) {line}" for i, line in enumerate(lines[:LISTED], 1))
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    raise DataError(f"{len(lines)} problems: {shown}{more}{way_out}")
