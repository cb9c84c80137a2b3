"""Opens one file of any known format; nothing else in this application decodes pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from fastclip.transfuse.data.samples import DataError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

# Pillow tries these alone: its others include PostScript, which starts another program.
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
TIFF_SUFFIXES = (".tif", ".tiff")
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


def decode(plane: Plane) -> Decoded:
    """Read one image or mask as it is stored; DataError names what cannot be read."""
    suffix = suffix_of(plane.file)
    if suffix in VOLUME_SUFFIXES or suffix in DICOM_SUFFIXES:
        from fastclip.transfuse.data import medical

        with reading(plane):
            read = medical.read_slice if suffix in VOLUME_SUFFIXES else medical.read_dicom
            return read(plane)
    if suffix == ".json":
        from fastclip.transfuse.data import coco

        with reading(plane):
            return coco.read_annotations(plane)
    if suffix == ".npy":
        from fastclip.transfuse.data.arrays import read_array

        return Decoded(np.array(read_array(plane.file)[plane.index]), "array", "NPY")
    with reading(plane):
        content = plane.file.read_bytes()
        try:
            return _pillow(content)
        except Image.UnidentifiedImageError:
            if suffix in TIFF_SUFFIXES:
                return _tifffile(content)
            raise ValueError(_what_it_is(content)) from None


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn whatever a decoder raises over a damaged file into a DataError that names it."""
    try:
        yield
    except DataError:
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
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {name.partition('.')[0]}: pip install 'fastclip-torch[medical]'",
            name=error.name,
        ) from error


def _what_it_is(content: bytes) -> str:
    if not content:
        return "the file is empty"
    known = {b"%!PS": "PostScript", b"%PDF": "a PDF", b"PK\x03\x04": "a zip archive"}
    for start, name in known.items():
        if content.startswith(start):
            return f"it is {name}, whatever its name says"
    return f"no image of a known format: {', '.join(PILLOW_FORMATS)}"


def _pillow(content: bytes) -> Decoded:
    """Decode with Pillow, orientation applied, with what the conversion has lost."""
    image: Image.Image = Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
    kind, raw = image.format or "", _raw_mode(image)
    frames = int(getattr(image, "n_frames", 1)) if kind in ("TIFF", "GIF", "WEBP") else 1
    tags = dict(getattr(image, "tag_v2", {}))
    notes = _orientation_notes(image)
    image.load()
    if notes == [TURNED]:
        image = ImageOps.exif_transpose(image)
    found = Decoded(np.array([]), image.mode, kind, frames=frames, notes=notes)
    if image.mode == "P":
        image.apply_transparency()
        found.palette = np.array(image.getpalette("RGBA"), np.uint8).reshape(-1, 4)
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "F") and image.mode[0] != "I":
        image = image.convert("RGBA" if image.mode in ("PA", "RGBa") else "RGB")
        found.mode = image.mode
    found.pixels = np.array(image)
    found.cut = ";16" in raw and image.mode[0] != "I"
    _set_range(found, raw, tags)
    return found


def _orientation_notes(image: Image.Image) -> list[str]:
    """What is to be said of the orientation that the file carries, if anything."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    # Damaged EXIF raises SyntaxError, struct.error, KeyError and others; the picture is whole.
    except Exception:
        return ["EXIF data damaged, taken as upright"]
    return [TURNED] if orientation in range(2, 9) else []


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name for how the file stores its pixels, e.g. 'RGB;16B'."""
    arguments: Any = next(iter(getattr(image, "tile", [])), ("", None, 0, ""))[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _set_range(found: Decoded, raw: str, tags: Any) -> None:
    """What white is, where the array's dtype does not tell."""
    if found.format == "PNG" and raw in ("L;2", "L;4"):
        found.step = 85 if raw == "L;2" else 17
    if found.format == "TIFF" and raw.startswith(("L;2", "L;4")):
        found.step = 85 if raw.startswith("L;2") else 17
    if found.mode == "I" and (found.format in ("PNG", "PPM") or raw == "I;16S"):
        found.white = 65535.0 if found.format != "TIFF" else 32767.0
    if raw == "I;12":
        found.white = 4095.0
    white_is_zero = found.format == "TIFF" and tags.get(262) == 0
    if white_is_zero and found.mode.startswith("I;16"):  # Pillow turns 1 to 8 bits itself
        found.pixels = np.iinfo(np.uint16).max - found.pixels
    elif white_is_zero and found.mode in ("I", "F"):
        raise ValueError("white is stored as 0 in more than 16 bits: store black as 0")


def _tifffile(content: bytes) -> Decoded:
    """TIFF kinds that Pillow lacks: float64, 16-bit planes apart, compressions of scanners."""
    tifffile = optional("tifffile", "this kind of TIFF")
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages[0]
        pixels, frames = page.asarray(), len(tiff.pages)
        if int(page.photometric) == 0:
            raise ValueError("white is stored as 0: store black as 0")
        if page.axes in ("SYX", "CYX"):
            pixels = np.moveaxis(pixels, 0, -1)
        if int(page.photometric) not in (1, 2) or pixels.ndim not in (2, 3):
            raise ValueError(f"axes {page.axes}, {page.photometric.name}: store gray or RGB")
        if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4):
            raise ValueError(f"{pixels.shape[-1]} bands: store gray or RGB")
        orientation = page.tags.get("Orientation")
    turn = _TURNS.get(int(orientation.value) if orientation else 1)
    notes = ["turned by its orientation tag"] if turn else []
    pixels = np.ascontiguousarray(turn(pixels) if turn else pixels)
    return Decoded(pixels, "array", "TIFF", frames=frames, notes=notes)


_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: lambda a: np.rot90(a, 1),
}
