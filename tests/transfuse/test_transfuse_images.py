"""Images of every format and depth: scaled by a stated rule, upright, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
from pairs import SIZE, Draw, pair, write
from PIL import Image

from fastclip.transfuse.data import DataError, Samples, load_split
from fastclip.transfuse.data.decode import decode
from fastclip.transfuse.data.formats import Plane
from fastclip.transfuse.data.images import read_image
from fastclip.transfuse.data.options import ReadOptions


def load(root: Path, **options: Any) -> Samples:
    return load_split(str(root), "all", SIZE, options=ReadOptions(**options))


def brightness(samples: Samples) -> tuple[float, float]:
    """Of object and ground; 80 and 200 are right."""
    inside = samples.masks[:, 0] > 127
    images = samples.images.float().mean(1)
    return float(images[inside].mean()), float(images[~inside].mean())


KINDS: dict[str, tuple[str, Draw]] = {
    "jpeg": ("jpg", Image.fromarray),
    "gif": ("gif", Image.fromarray),
    "webp": ("webp", Image.fromarray),
    "jpeg 2000": ("jp2", Image.fromarray),
    "ppm": ("ppm", Image.fromarray),
    "bmp": ("bmp", Image.fromarray),
    "gray": ("png", lambda a: Image.fromarray(a[..., 0])),
    "16 bits": ("png", lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 257)),
    "16 bits, tiff": ("tif", lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 257)),
    "float": ("tif", lambda a: Image.fromarray(a[..., 0].astype(np.float32) / 255)),
    "palette": ("png", lambda a: Image.fromarray(a).quantize(16)),
    "alpha": ("png", lambda a: Image.fromarray(np.dstack([a, np.zeros(SIZE, np.uint8)]))),
    "gray and alpha": ("png", lambda a: Image.fromarray(a[..., 0]).convert("LA")),
    "CMYK": ("jpg", lambda a: Image.fromarray(a).convert("CMYK")),
    "CMYK, tiff": ("tif", lambda a: Image.fromarray(a).convert("CMYK")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_has_its_brightness(tmp_path: Path, kind: str) -> None:
    suffix, draw = KINDS[kind]
    write(tmp_path, image=f"images/{{}}.{suffix}", draw_image=draw)
    inside, outside = brightness(load(tmp_path))
    assert 70 < inside < 92
    assert 190 < outside < 210


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that undoes each
    exif = Image.Exif()
    exif[0x0112] = orientation

    def draw(pixels: np.ndarray) -> Image.Image:
        return Image.fromarray(pixels).transpose(Image.Transpose(back[orientation]))

    write(tmp_path, image=f"images/{{}}.{suffix}", draw_image=draw, exif=exif)
    samples = load(tmp_path)
    inside, outside = brightness(samples)
    assert inside < 95
    assert outside > 185
    if suffix != "tif":  # Pillow turns these itself
        assert any("turned by its EXIF orientation: 4" in note for note in samples.notes)


def test_percentiles_spread_what_uses_little_of_its_range(tmp_path: Path) -> None:
    write(tmp_path, draw_image=lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 16))
    dark = load(tmp_path)
    assert brightness(dark)[1] < 15
    assert any("--intensity percentile" in note for note in dark.notes)
    inside, outside = brightness(load(tmp_path, intensity="percentile"))
    assert inside < 10
    assert outside > 240


BAD: dict[str, tuple[Any, str]] = {
    "float beyond 1": (np.full(SIZE, 37.0, np.float32), r"37.*not 0 to 1.*--intensity percentile"),
    "NaN": (np.full(SIZE, np.nan, np.float32), r"NaN"),
    "32 bits": (np.full(SIZE, 70000, np.int32), r"int32 values.*--intensity percentile"),
}


@pytest.mark.parametrize("kind", BAD)
def test_values_without_a_rule_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    pixels, message = BAD[kind]
    file = tmp_path / "x.tif"
    Image.fromarray(pixels).save(file)
    with pytest.raises(DataError, match=r"x\.tif holds.*" + message):
        read_image(Plane(file))


def test_other_formats_are_never_tried(tmp_path: Path) -> None:
    for content, message in (
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is PostScript"),
        (b"%PDF-1.4", "it is a PDF"),
        (b"", "the file is empty"),
        (b"P7 nonsense", "no image of a known format"),
    ):
        file = tmp_path / "x.png"
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"x\.png cannot be read \({message}"):
            read_image(Plane(file))


def test_a_decompression_bomb_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (200, 200)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.png cannot be read .*decompression bomb"):
        read_image(Plane(tmp_path / "bomb.png"))


def test_the_first_frame_is_taken_and_said(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full(SIZE, v, np.uint8)) for v in (10, 240))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    read = read_image(Plane(tmp_path / "x.gif"))
    assert read.pixels.max() == 10
    assert read.notes == ["first of several frames taken (GIF)"]


def test_white_stored_as_zero(tmp_path: Path) -> None:
    pixels = pair(0)[0][..., 0].astype(np.uint16) * 257
    Image.fromarray(65535 - pixels).save(tmp_path / "x.tif", tiffinfo={262: 0})
    if Image.open(tmp_path / "x.tif").tag_v2[262] != 0:
        pytest.skip("this Pillow does not write white as 0")
    assert read_image(Plane(tmp_path / "x.tif")).pixels.mean() > 150


def test_kinds_of_tiff_that_pillow_lacks(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = pair(0)[0]
    tifffile.imwrite(tmp_path / "d.tif", pixels[..., 0] / 255.0)  # float64
    planes = np.moveaxis(pixels, -1, 0).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    for name in ("d.tif", "p.tif"):
        assert np.abs(read_image(Plane(tmp_path / name)).pixels.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_no_tiff_is_misread(
    tmp_path: Path, dtype: str, planar: str, compression: str | None, order: str
) -> None:
    tifffile = pytest.importorskip("tifffile")
    for shape in ((20, 24), (20, 24, 2), (20, 24, 3)):
        values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
        values = values / values.dtype.type(100) if dtype[0] == "f" else values
        stored = np.moveaxis(values, -1, 0) if planar == "separate" and values.ndim == 3 else values
        options = {"planarconfig": planar} if values.ndim == 3 else {}
        options |= {"extrasamples": ["unassalpha"]} if shape[-1] == 2 else {}
        photometric = "rgb" if shape[-1] == 3 else "minisblack"
        tifffile.imwrite(
            tmp_path / "x.tif",
            stored,
            photometric=photometric,
            byteorder=order,
            compression=compression,
            **options,
        )
        try:
            found = decode(Plane(tmp_path / "x.tif"))
        except DataError:  # refused, not misread
            continue
        expected = values // 256 if found.cut else values
        assert np.array_equal(found.pixels.astype(float), expected.astype(float))


def test_slices_of_a_volume_are_samples(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    pairs = [pair(row) for row in range(5)]
    volume = np.stack([image[..., 0] for image, _ in pairs], -1).astype(np.float32) * 7 - 300
    labels = np.stack([mask for _, mask in pairs], -1).astype(np.uint8)
    for folder, values in (("images", volume), ("masks", labels)):
        (tmp_path / folder).mkdir()
        image = nibabel.Nifti1Image(values, np.eye(4))
        nibabel.save(image, tmp_path / folder / f"patient{'_label' * (folder == 'masks')}.nii.gz")
    samples = load(tmp_path)
    assert samples.names == [f"patient/{i:04d}" for i in range(5)]
    assert np.array_equal(samples.masks[:, 0].numpy() > 0, labels.transpose(2, 0, 1) > 0)
    inside, outside = brightness(samples)
    assert inside < 20
    assert outside > 230


def test_dicom_by_its_window(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset(str(tmp_path / "x.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
    pixels = pair(0)[0][..., 0].astype(np.uint16) * 4
    dataset.Rows, dataset.Columns = SIZE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 510, 1020
    dataset.PixelData = (1020 - pixels).tobytes()
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    read = read_image(Plane(tmp_path / "x.dcm"))
    assert np.abs(read.pixels[..., 0].astype(int) - pair(0)[0][..., 0]).max() <= 1
