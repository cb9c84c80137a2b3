"""The formats of images and masks, where one lies, and what decoding it gives."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastclip.transfuse.data.samples import DataError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

# Pillow tries these alone: its others include PostScript, which starts another program.
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES, *DICOM_SUFFIXES)
LOSSY = ("JPEG", "WEBP", "JPEG2000")
CLASSES = "classes"  # a mode: numbers of classes, whatever values one mask happens to hold
OVERLAP = 65535  # a number of no class: pixels of two
TURNED = "turned by its EXIF orientation"


@dataclass(frozen=True)
class Plane:
    """Where one image or mask lies: a file, or one slice of a volume, or one row of an array."""

    file: Path
    index: int | None = None

    def __str__(self) -> str:
        name = printable(self.file)
        return name if self.index is None else f"{name}[{self.index}]"


@dataclass
class Decoded:
    """The stored values of a file, turned upright.

    `pixels` is [H, W] or [H, W, bands] of any dtype; `palette` uint8 [colours, 4] where pixels
    are indices of one; `white` the largest value that the format can hold, where that is not the
    dtype's own.
    """

    pixels: np.ndarray
    mode: str
    format: str
    palette: np.ndarray | None = None
    white: float | None = None
    step: int = 1  # what 1 of the stored value became: 85 for 2 bits, 17 for 4
    frames: int = 1
    range: tuple[float, float] | None = None  # black and white as the file or volume says
    cut: bool = False  # more than 8 bits were stored, and the lower ones are lost
    notes: list[str] = field(default_factory=list)


def suffix_of(file: Path) -> str:
    """The file's suffix in lower case; '.nii.gz' is one."""
    name = file.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem_of(file: Path) -> str:
    """The file's name without its suffix."""
    return file.name[: len(file.name) - len(suffix_of(file))]


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn whatever a decoder raises over a damaged file into a DataError that names it."""
    try:
        yield
    except (DataError, NameError):  # NameError: a fault of the program, not of the file
        raise
    except ModuleNotFoundError as error:
        raise DataError(str(error)) from error
    # Decoders of damaged files raise OSError, SyntaxError, struct.error, zlib.error, IndexError,
    # KeyError, classes of their own for a decompression bomb, and more.
    except Exception as error:
        text = printable(str(error)) or type(error).__name__
        raise DataError(
            f"{printable(str(what))} cannot be read ({text}): replace it, or remove it with its "
            "partner"
        ) from error


def optional(name: str, purpose: str) -> Any:
    """Import a package of the [medical] extra; ModuleNotFoundError says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {name.partition('.')[0]}: pip install 'fastclip-torch[medical]'",
            name=error.name,
        ) from error
