"""Masks: what is recognised, what is asked for, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
from pairs import SIZE, Draw, truths, write
from PIL import Image, ImageFilter

from fastclip.transfuse.data import DataError, load_split
from fastclip.transfuse.data.options import MaskOptions, ReadOptions


def read(root: Path, **options: Any) -> np.ndarray:
    how = ReadOptions(masks=MaskOptions(**options))
    samples = load_split(str(root), "all", SIZE, options=how)
    return samples.masks.numpy()


def palette(indices: np.ndarray, *colours: int, **info: Any) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette(list(colours))
    picture.info.update(info)
    return picture


def rgba(mask: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    pixels = np.full((*mask.shape, 4), 0, np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, mask * 255
    return Image.fromarray(pixels)


def coloured(mask: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    pixels[mask] = colour
    return Image.fromarray(pixels)


RECOGNISED: dict[str, Draw] = {
    "0 and 1": lambda m: Image.fromarray(m.astype(np.uint8)),
    "0 and 254": lambda m: Image.fromarray(m.astype(np.uint8) * 254),
    "16 bits, 0 and 65535": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "16 bits, 0 and 1": lambda m: Image.fromarray(m.astype(np.uint16)),
    "RGB": lambda m: coloured(m, (255, 255, 255)),
    "palette, white first": lambda m: palette(~m, 255, 255, 255, 0, 0, 0),
    "palette, black first": lambda m: palette(m, 0, 0, 0, 255, 255, 255),
    "palette of VOC": lambda m: palette(m, 0, 0, 0, 128, 0, 0, 0, 128, 0),
    "alpha, white": lambda m: rgba(m, (255, 255, 255)),
    "alpha, black": lambda m: rgba(m, (0, 0, 0)),
    "opaque RGBA": lambda m: coloured(m, (255, 255, 255)).convert("RGBA"),
    "white on transparent": lambda m: Image.fromarray(np.stack([m * np.uint8(255)] * 4, -1)),
    "palette in alpha": lambda m: palette(m, *[9, 9, 9] * 2, transparency=bytes([0, 255])),
    "palette in alpha, object first": (
        lambda m: palette(~m, *[9, 9, 9] * 2, transparency=bytes([255, 0]))
    ),
}


@pytest.mark.parametrize("kind", RECOGNISED)
def test_a_plain_mask_is_read_exactly(tmp_path: Path, kind: str) -> None:
    write(tmp_path, draw=RECOGNISED[kind])
    assert np.array_equal(read(tmp_path)[:, 0], truths() * np.uint8(255))


@pytest.mark.parametrize("depth", [2, 4])
def test_gray_png_of_few_bits(tmp_path: Path, depth: int) -> None:
    def draw(mask: np.ndarray) -> Image.Image:
        return Image.fromarray(mask.astype(np.uint8))

    write(tmp_path, draw=draw)
    for file in (tmp_path / "masks").iterdir():
        low_depth_png(file, np.asarray(Image.open(file)), depth)
    assert np.array_equal(read(tmp_path)[:, 0], truths() * np.uint8(255))


def low_depth_png(file: Path, values: np.ndarray, depth: int) -> None:
    """A gray PNG of 2 or 4 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    per_byte = 8 // depth
    parts = values.reshape(len(values), -1, per_byte).astype(np.uint8)
    shifts = np.array([8 - depth * (i + 1) for i in range(per_byte)])
    packed = (parts << shifts).sum(-1).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, 0, 0, 0, 0)
    with open(file, "wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n")
        for tag, body in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
            out.write(struct.pack(">I", len(body)) + tag + body)
            out.write(struct.pack(">I", zlib.crc32(tag + body)))


def test_soft_edges_are_kept(tmp_path: Path) -> None:
    def draw(mask: np.ndarray) -> Image.Image:
        big = Image.fromarray(np.kron(mask, np.ones((4, 4), bool)).astype(np.uint8) * 255)
        return big.resize(SIZE[::-1], Image.Resampling.BILINEAR)

    write(tmp_path, draw=draw)
    found = read(tmp_path)[:, 0]
    assert ((found >= 128) == truths()).mean() > 0.99
    assert len(np.unique(found)) > 4


def test_blur_and_jpeg_damage_are_recognised(tmp_path: Path) -> None:
    def blur(mask: np.ndarray) -> Image.Image:
        return Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1.5))

    write(tmp_path / "blur", draw=blur)
    assert ((read(tmp_path / "blur")[:, 0] >= 128) == truths()).mean() > 0.97
    write(tmp_path / "jpeg", mask="masks/{}.jpg")
    found = read(tmp_path / "jpeg")[:, 0]
    assert set(np.unique(found)) == {0, 255}
    assert ((found >= 128) == truths()).mean() > 0.99


def numbers(mask: np.ndarray, top: int) -> Image.Image:
    """Objects numbered 1 to top, one pixel each."""
    values = np.arange(mask.size).reshape(mask.shape) % top + 1
    return Image.fromarray(np.where(mask, values, 0).astype(np.uint8))


def with_ignore(mask: np.ndarray, object_value: int = 1) -> Image.Image:
    values = mask.astype(np.uint8) * object_value
    values[:2] = 255
    return Image.fromarray(values)


def halves(mask: np.ndarray) -> np.ndarray:
    """Classes 1 and 2: left and right of the object's middle."""
    right = np.arange(mask.shape[1]) >= 16
    return np.where(mask, np.where(right, 2, 1), 0).astype(np.uint8)


REFUSED: dict[str, tuple[Draw, str]] = {
    "object numbers": (lambda m: numbers(m, 180), r"values 0\.\.180.*--instances union"),
    "object numbers to 255": (lambda m: numbers(m, 255), r"values 0\.\.255.*--instances union"),
    "ignored pixels": (with_ignore, r"values 0\.\.255.*0, 1, 255.*--ignore"),
    "thin ignored": (
        lambda m: Image.fromarray((m * np.uint8(255)) | np.eye(*m.shape, dtype=np.uint8)),
        r"0, 1, 255",
    ),
    "0 and 128": (lambda m: Image.fromarray(m.astype(np.uint8) * 128), r"0, 128"),
    "classes": (lambda m: Image.fromarray(halves(m)), r"0, 1, 2.*--classes"),
    "green": (lambda m: coloured(m, (0, 255, 0)), r'#00ff00.*--mask-colors "#00ff00"'),
    "palette, red on white": (lambda m: palette(m, 255, 255, 255, 255, 0, 0), r"1 #ff0000"),
    "palette of VOC, void": (
        lambda m: palette(m * 255, *[0, 0, 0], *[9, 8, 7] * 254, *[224, 224, 192]),
        r"255 #e0e0c0",
    ),
    "16 bits": (lambda m: Image.fromarray(m.astype(np.uint16) * 4095), r"0, 4095"),
    "alpha against colour": (
        lambda m: Image.fromarray(np.stack([~m * np.uint8(255)] * 3 + [m * np.uint8(255)], -1)),
        r"alpha channel and another in its colours",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_fits_no_rule_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    draw, message = REFUSED[kind]
    write(tmp_path, draw=draw, count=1)
    with pytest.raises(DataError, match=r"case00\.png.*" + message):
        read(tmp_path)


def test_several_frames_are_no_mask(tmp_path: Path) -> None:
    write(tmp_path, count=1, mask="masks/{}.gif")
    one, other = (Image.fromarray(np.full(SIZE, v, np.uint8)) for v in (0, 255))
    one.save(tmp_path / "masks" / "case00.gif", save_all=True, append_images=[other])
    with pytest.raises(DataError, match=r"case00\.gif holds 2 frames"):
        read(tmp_path)


def test_one_set_does_not_mix_scales(tmp_path: Path) -> None:
    write(tmp_path, count=2, draw=RECOGNISED["0 and 1"])
    write(tmp_path, count=2, first=2)
    with pytest.raises(DataError, match=r"case00\.png holds 0 and 1, and .*case02\.png 0 and 255"):
        read(tmp_path)


def test_what_is_asked_for_is_read(tmp_path: Path) -> None:
    write(tmp_path / "red", draw=lambda m: coloured(m, (255, 0, 0)))
    assert np.array_equal(read(tmp_path / "red", colors=("#ff0000",))[:, 0] > 0, truths())
    with pytest.raises(DataError, match=r"no mask holds #00ff00.*#ff0000"):
        read(tmp_path / "red", colors=("#00ff00",))
    write(tmp_path / "numbers", draw=lambda m: numbers(m, 180))
    assert np.array_equal(read(tmp_path / "numbers", instances="union")[:, 0] > 0, truths())
    write(tmp_path / "dark", draw=lambda m: Image.fromarray(~m * np.uint8(255)))
    assert np.array_equal(read(tmp_path / "dark", invert=True)[:, 0] > 0, truths())
    write(tmp_path / "ramp", draw=lambda m: Image.fromarray(np.tile(np.uint8(range(48)), (32, 1))))
    with pytest.raises(DataError, match=r"--soft"):
        read(tmp_path / "ramp")
    assert read(tmp_path / "ramp", soft=True).max() == 47


def test_ignored_pixels_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path, draw=with_ignore)
    how = ReadOptions(masks=MaskOptions(ignore=255))
    samples = load_split(str(tmp_path), "all", SIZE, options=how)
    assert np.array_equal(samples.masks[:, 0, 2:].numpy() > 0, truths()[:, 2:])
    assert samples.ignored is not None
    assert (samples.ignored[:, 0, :2] == 255).all()
    assert not samples.ignored[:, 0, 2:].any()
    small = load_split(str(tmp_path), "all", (16, 16), options=how)
    assert small.ignored is not None
    assert (small.ignored[:, 0, 0] == 255).all()


@pytest.mark.parametrize("layout", ["numbers", "palette", "colours", "folders"])
def test_classes_become_maps(tmp_path: Path, layout: str) -> None:
    options: dict[str, Any] = {"classes": 2}
    if layout == "folders":
        for number in (1, 2):
            write(
                tmp_path,
                mask=f"masks/zone{number}/{{}}.png",
                draw=lambda m, n=number: Image.fromarray((halves(m) == n) * np.uint8(255)),
            )
    elif layout == "colours":
        table = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
        write(tmp_path, draw=lambda m: Image.fromarray(table[halves(m)]))
        options["colors"] = ("#ff0000", "#0000ff")
    elif layout == "palette":
        write(tmp_path, draw=lambda m: palette(halves(m), 0, 0, 0, 128, 0, 0, 0, 128, 0))
    else:
        write(tmp_path, draw=lambda m: Image.fromarray(halves(m)))
    found = read(tmp_path, **options)
    expected = np.stack([halves(m) for m in truths()])
    assert found.shape == (4, 2, *SIZE)
    for number in (1, 2):
        assert np.array_equal(found[:, number - 1] > 0, expected == number)


def test_wrong_class_numbers_and_folders_are_named(tmp_path: Path) -> None:
    write(tmp_path / "n", draw=lambda m: Image.fromarray(halves(m) * np.uint8(3)), count=1)
    with pytest.raises(DataError, match=r"case00\.png holds values 0, 3, 6: with --classes 2"):
        read(tmp_path / "n", classes=2)
    for name in ("a", "b"):
        write(tmp_path / "f", mask=f"masks/{name}/{{}}.png", count=2)
    with pytest.raises(DataError, match=r"2 files, one per class: ask for --classes 2"):
        read(tmp_path / "f")


def test_contradicting_options_are_refused() -> None:
    for options, message in (
        ({"classes": 2, "instances": "union"}, "contradict"),
        ({"colors": ("red",)}, "--mask-colors must be"),
        ({"classes": 0}, "--classes must be 1 to 255"),
        ({"classes": 2, "colors": ("#ff0000",)}, "needs as many"),
        ({"ignore": -1}, "--ignore must be"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskOptions(**options).check()  # type: ignore[arg-type]


def test_float_masks_of_a_tiff(tmp_path: Path) -> None:
    write(tmp_path, mask="masks/{}.tif", draw=lambda m: Image.fromarray(m.astype(np.float32)))
    assert np.array_equal(read(tmp_path)[:, 0] > 0, truths())
