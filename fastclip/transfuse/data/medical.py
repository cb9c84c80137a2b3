"""Slices of NIfTI volumes, and DICOM files: needs the [medical] extra."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fastclip.transfuse.data.formats import Decoded, Plane, optional

VOLUME_PERCENTILES = (0.5, 99.5)


def count_slices(file: Path) -> int:
    """Slices of a volume along its last spatial axis, without reading their values."""
    shape = optional("nibabel", "a NIfTI file").load(file).shape
    return 1 if len(shape) == 2 else int(shape[2])


def read_slice(plane: Plane) -> Decoded:
    """One slice of a volume: [rows, columns] are its first two axes as they are stored.

    Image and mask lie in one grid, so none of them is turned. White and black are two
    percentiles of the whole volume, as the unit of MRI is free.
    """
    volume, low, high = _volume(str(plane.file), plane.file.stat().st_mtime_ns)
    index = plane.index or 0
    if volume.ndim == 3:
        if not 0 <= index < volume.shape[2]:
            raise ValueError(f"slice {index} of {volume.shape[2]}")
        volume = volume[:, :, index]
    note = f"volume, scaled by its percentiles {VOLUME_PERCENTILES}"
    pixels = np.ascontiguousarray(volume)
    return Decoded(pixels, "array", "NIFTI", range=(low, high), notes=[note])


@lru_cache(maxsize=4)  # slices of a volume are read one after the other
def _volume(file: str, modified: int) -> tuple[np.ndarray, float, float]:
    image = optional("nibabel", "a NIfTI file").load(file)
    if len(image.shape) not in (2, 3) and image.shape[3:] != (1,) * (len(image.shape) - 3):
        raise ValueError(f"a volume of shape {image.shape}: store three axes")
    values = np.asarray(image.dataobj)
    values = values.reshape(values.shape[:3]) if values.ndim > 3 else values
    low, high = np.percentile(values, VOLUME_PERCENTILES)
    return values, float(low), float(high)


def read_dicom(plane: Plane) -> Decoded:
    """A DICOM file of one frame; gray by its own window, or by the bits that it stores."""
    pydicom = optional("pydicom", "a DICOM file")
    pixels_module = optional("pydicom.pixels", "a DICOM file")
    dataset = pydicom.dcmread(plane.file)
    pixels = dataset.pixel_array
    kind = str(dataset.PhotometricInterpretation)
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        raise ValueError(f"{dataset.NumberOfFrames} frames: store one file for each")
    if kind.startswith("YBR"):
        pixels, kind = pixels_module.convert_color_space(pixels, kind, "RGB"), "RGB"
    if kind == "RGB":
        return Decoded(pixels, "array", "DICOM")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"{kind}: store gray or RGB")
    values = pixels_module.apply_modality_lut(pixels, dataset)
    low, high, note = float(values.min()), float(values.max()), "its smallest and largest value"
    if "WindowCenter" in dataset:
        centre, width = (_first(dataset[key].value) for key in ("WindowCenter", "WindowWidth"))
        low, high, note = centre - width / 2, centre + width / 2, "its own window"
    if kind == "MONOCHROME1":
        values, low, high = -values.astype(np.float64), -high, -low
    note = f"DICOM, scaled by {note}"
    return Decoded(values.astype(np.float64), "array", "DICOM", range=(low, high), notes=[note])


def _first(value: Any) -> float:
    """A DICOM number, or the first of several."""
    return float(value if isinstance(value, (int, float, str)) else value[0])
