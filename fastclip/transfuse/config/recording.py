"""Flags about what a run shows and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(kw_only=True)
class RecordingConfig:
    """What is shown and kept beside the CSV files and the pictures."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ()

    tensorboard: bool = False
    """Also write TensorBoard events to --out."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
