"""Flags about the run's folder: where it is, what happens to an earlier run, what is saved when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from fastclip.transfuse.config.checks import require_at_least

UNITS = {"s": 1, "min": 60, "h": 3600}  # seconds


class Interval(NamedTuple):
    """A number of steps, or a time."""

    steps: int | None = None
    seconds: float | None = None


@dataclass(kw_only=True)
class SafetyConfig:
    """The run's folder, what happens to what is in it, and what is saved when."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ()

    out: Path | None = None
    """Folder for checkpoints, CSV files and pictures; None is runs/<model>-<date>-<time>."""
    resume: bool = False
    """Continue the run in --out from its last.pt, exactly; give the same other arguments. A run
    that was killed before its first checkpoint starts again."""
    overwrite: bool = False
    """Allow --out to hold an earlier run, and replace it: every file that it has written."""
    save_every: str | None = None
    """Also save last.pt within an epoch: every so many steps (500), or by the clock (10min, 1h)."""
    keep: int = 0
    """Also keep the newest N saves, as step-<step>.pt beside last.pt."""
    max_bad_steps: int = 10
    """Steps in a row whose loss or gradients may be NaN or infinite: each is left out, counted and
    reported. One more ends the run, with the last good checkpoint in place."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        if self.resume and self.out is None:
            raise ValueError("--resume needs the --out of the run to continue")
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite replaces it: give one")
        require_at_least(self, 0, "keep", "max_bad_steps")
        self.interval()

    def interval(self) -> Interval | None:
        """`save_every`, read; ValueError where it is no interval."""
        if self.save_every is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)?", self.save_every.strip())
        if match is not None and float(match[1]) > 0:
            if match[2] is not None:
                return Interval(seconds=float(match[1]) * UNITS[match[2]])
            if match[1].isdigit():
                return Interval(steps=int(match[1]))
        raise ValueError(
            "--save-every must be a number of steps (500) or a time (30s, 10min, 1h), got "
            f"{self.save_every!r}"
        )
