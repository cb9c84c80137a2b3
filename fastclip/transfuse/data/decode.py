"""Opens one file of any known format; nothing else in this application decodes pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fastclip.transfuse.data.arrays import read_array
from fastclip.transfuse.data.coco import read_annotations
from fastclip.transfuse.data.formats import (
    DICOM_SUFFIXES,
    PILLOW_FORMATS,
    TIFF_STARTS,
    TURNED,
    VOLUME_SUFFIXES,
    Decoded,
    Plane,
    optional,
    reading,
    suffix_of,
)
from fastclip.transfuse.data.medical import read_dicom, read_slice


def decode(plane: Plane) -> Decoded:
    """Read one image or mask as it is stored; DataError names what cannot be read."""
    suffix = suffix_of(plane.file)
    if suffix in VOLUME_SUFFIXES or suffix in DICOM_SUFFIXES:
        with reading(plane):
            return read_slice(plane) if suffix in VOLUME_SUFFIXES else read_dicom(plane)
    if suffix == ".json":
        with reading(plane):
            return read_annotations(plane)
    if suffix == ".npy":
        return Decoded(np.array(read_array(plane.file)[plane.index]), "array", "NPY")
    with reading(plane):
        content = plane.file.read_bytes()
        try:
            return _pillow(content)
        except Image.UnidentifiedImageError:
            if content.startswith(TIFF_STARTS):
                return _tifffile(content)
            raise ValueError(_what_it_is(content)) from None


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
    if kind == "TIFF" and _misread_by_pillow(dict(image.tag_v2), content):  # type: ignore[attr-defined]
        raise Image.UnidentifiedImageError
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


def _misread_by_pillow(tags: dict[int, Any], content: bytes) -> bool:
    """Kinds of TIFF that Pillow opens and gives other values of, found by trying all of them."""
    bits, samples = max(tags.get(258, (1,))), int(tags.get(277, 1))
    apart = tags.get(284, 1) == 2 and (bits > 8 or samples < 3)
    swapped = content.startswith(b"MM") and bits > 8 and tags.get(259, 1) != 1
    return apart or swapped or samples > 4


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
        if pixels.ndim == 3 and (pixels.shape[-1] > 4 or pixels.dtype == bool):
            raise ValueError(f"{pixels.shape[-1]} bands of {pixels.dtype}: store gray or RGB")
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
