"""How files are to be read, where the files themselves do not say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Intensity = Literal["dtype", "percentile"]


@dataclass(frozen=True)
class MaskOptions:
    """What a mask's values mean; without any of these only plain binary masks are read.

    Args:
        colors: '#rrggbb' of the object, or of class 1, 2, ... with `classes`; or 'alpha' alone.
        classes: number of classes; masks hold 0 for the ground and 1 to `classes`.
        instances: 'union' where every value above 0 is the number of an object.
        invert: the object is dark and the ground is bright.
        ignore: stored value of pixels that count nowhere.
        soft: gray values are shares of the object, however many of them there are.
    """

    colors: tuple[str, ...] = ()
    classes: int | None = None
    instances: Literal["union"] | None = None
    invert: bool = False
    ignore: int | None = None
    soft: bool = False

    @property
    def channels(self) -> int:
        """Maps that a mask is read into."""
        return self.classes or 1

    def check(self) -> None:
        """Raise ValueError for an option that is wrong or contradicts another."""
        for color in self.colors:
            if color != "alpha" and not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
                raise ValueError(f"--mask-colors must be '#rrggbb' or 'alpha', got {color!r}")
        if "alpha" in self.colors and len(self.colors) > 1:
            raise ValueError(f"--mask-colors alpha stands alone, got {' '.join(self.colors)}")
        if self.classes is not None and not 1 <= self.classes <= 255:
            raise ValueError(f"--classes must be 1 to 255, got {self.classes}")
        if self.classes is not None and self.colors and len(self.colors) != self.classes:
            raise ValueError(
                f"--classes {self.classes} needs as many --mask-colors, got {len(self.colors)}"
            )
        if self.ignore is not None and not 0 <= self.ignore <= 65535:
            raise ValueError(f"--ignore must be 0 to 65535, got {self.ignore}")
        if self.ignore is not None and self.colors:
            raise ValueError("--ignore is a stored value and does not go with --mask-colors")
        asked = {"--classes": self.classes, "--instances": self.instances, "--soft": self.soft}
        given = [flag for flag, value in asked.items() if value]
        if len(given) > 1 or (self.colors and given not in ([], ["--classes"])):
            flags = [*given, *(["--mask-colors"] if self.colors else [])]
            raise ValueError(f"{' and '.join(flags)} contradict each other: give one")
        if self.invert and self.classes:
            raise ValueError("--invert has no meaning with --classes")

    def color_values(self) -> list[tuple[int, int, int]]:
        """RGB of each of `colors`."""
        return [tuple(bytes.fromhex(color[1:])) for color in self.colors]  # type: ignore[misc]


@dataclass(frozen=True)
class ReadOptions:
    """How images and masks become samples, and which of them.

    Args:
        masks: what the values of masks mean.
        intensity: images of more than 8 bits by the range of their dtype, or each by its own
            0.5th and 99.5th percentile.
        skip_bad: leave out what cannot be read, instead of an error.
        cache: folder of decoded, resized samples.
        fold: (k, n), the k-th of n parts is held out; instead of a fraction.
        group_by: regular expression on a name; what it matches stays on one side of a split.
    """

    masks: MaskOptions = MaskOptions()
    intensity: Intensity = "dtype"
    skip_bad: bool = False
    cache: Path | None = None
    fold: tuple[int, int] | None = None
    group_by: str | None = None


def parse_fold(text: str | None) -> tuple[int, int] | None:
    """(k, n) of 'k/n'; ValueError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or int(match[2]) < 2 or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--fold must be K/N with 1 <= K <= N and N >= 2, got {text!r}")
    return int(match[1]), int(match[2])
