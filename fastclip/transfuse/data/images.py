"""One image of any format as 8-bit RGB; every scaling of intensities is stated here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastclip.transfuse.data.decode import decode
from fastclip.transfuse.data.formats import Decoded, Plane, reading
from fastclip.transfuse.data.options import Intensity
from fastclip.transfuse.data.samples import DataError

PERCENTILES = (0.5, 99.5)
DARK = 1 / 8  # of the range of the dtype; images that stay below it are spoken of


class ReadImage(NamedTuple):
    """uint8 [H, W, 3], and what is to be said about how it was read."""

    pixels: np.ndarray
    notes: list[str]


def read_image(plane: Plane, intensity: Intensity = "dtype") -> ReadImage:
    """Decode one image: upright, alpha dropped, gray and palettes and CMYK turned to RGB.

    Args:
        plane: where it lies.
        intensity: how more than 8 bits become 8. 'dtype': the range of the dtype, 0 to 1 for
            floats; a DICOM file's own window. 'percentile': the image's own 0.5th and 99.5th
            percentile become black and white. Slices of a volume are scaled by the percentiles
            of the volume either way, as their unit is free.

    Raises:
        DataError: it cannot be decoded, or its values fit no rule.
    """
    found = decode(plane)
    with reading(plane):
        pixels = _to_bands(found)
    notes = list(found.notes)
    if found.frames > 1:
        notes.append(f"first of several frames taken ({found.format})")
    if pixels.dtype != np.uint8:
        pixels = _to_8_bits(pixels, found, intensity, plane, notes)
    elif found.cut:
        notes.append("16-bit colour, scaled by the range of the dtype")
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, -1)
    return ReadImage(np.ascontiguousarray(pixels), notes)


def _to_bands(found: Decoded) -> np.ndarray:
    """[H, W, 1 or 3] of any dtype: palettes looked up, alpha dropped."""
    pixels = found.pixels
    if found.palette is not None:
        if pixels.size and int(pixels.max()) >= len(found.palette):
            raise ValueError(f"index {pixels.max()} of a palette of {len(found.palette)} colours")
        pixels = found.palette[pixels]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1]
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{pixels.shape[-1]} bands: store gray or RGB")
    return pixels


def _to_8_bits(
    pixels: np.ndarray, found: Decoded, intensity: Intensity, plane: Plane, notes: list[str]
) -> np.ndarray:
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{plane} holds NaN or infinite values: replace them")
    kind = f"{pixels.dtype} values"
    if found.range is not None and (intensity == "dtype" or found.format == "NIFTI"):
        low, high = found.range
    elif intensity == "percentile":
        low, high = np.percentile(values, PERCENTILES)
        notes.append(f"{kind}, each image scaled by its percentiles {PERCENTILES}")
    else:
        low, high = _dtype_range(values, pixels.dtype, found, plane)
        notes.append(f"{kind}, scaled from {low:g} to {high:g}")
        if values.max() < low + DARK * (high - low) and values.max() > values.min():
            notes.append(
                "very dark, as it uses an eighth of that range at most: "
                "--intensity percentile spreads it"
            )
    if high <= low:  # one value in all of the image: black, as any other
        return np.zeros(pixels.shape, np.uint8)
    return np.rint((values - low).clip(0, high - low) / (high - low) * 255).astype(np.uint8)


def _dtype_range(
    values: np.ndarray, dtype: np.dtype, found: Decoded, plane: Plane
) -> tuple[float, float]:
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if dtype.kind == "f":
        if low >= 0 and high <= 1:
            return 0.0, 1.0
        raise DataError(
            f"{plane} holds {dtype} values {low:g} to {high:g}, not 0 to 1: store 8 bits, or ask "
            "for --intensity percentile"
        )
    if found.white is not None and low >= 0 and high <= found.white:
        return 0.0, found.white
    if dtype == np.uint16:
        return 0.0, 65535.0
    if dtype == np.int16 and low >= 0:
        return 0.0, 32767.0
    raise DataError(
        f"{plane} holds {dtype} values {low:g} to {high:g}, and what is white among them is not "
        "known: store 8 or 16 bits, or ask for --intensity percentile"
    )
