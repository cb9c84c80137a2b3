"""Flags about the run's folder: where it is, what happens to an earlier run in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(kw_only=True)
class SafetyConfig:
    """The run's folder, and what happens to what is in it."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ()

    out: Path | None = None
    """Folder for checkpoints, CSV files and pictures; None is runs/<model>-<date>-<time>."""
    resume: bool = False
    """Continue the run in --out from its last.pt, exactly; give the same other arguments."""
    overwrite: bool = False
    """Allow --out to hold an earlier run, and replace it."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        if self.resume and self.out is None:
            raise ValueError("--resume needs the --out of the run to continue")
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite replaces it: give one")
