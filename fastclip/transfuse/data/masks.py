"""One mask of any format as maps of 0..255: recognised, read as asked for, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastclip.transfuse.data.binary import NotBinary, binary_map, list_values
from fastclip.transfuse.data.decode import decode
from fastclip.transfuse.data.formats import CLASSES, LOSSY, OVERLAP, Decoded, Plane
from fastclip.transfuse.data.options import MaskOptions
from fastclip.transfuse.data.samples import DataError

COLOUR_DISTANCE = 48  # per channel, in lossy formats; elsewhere a colour must be exact
OPAQUE_BLACK = "black, opaque"


@dataclass
class ReadMask:
    """uint8 [C, H, W] of 0..255; ignored bool [H, W] or None; the rule that was followed."""

    maps: np.ndarray
    ignored: np.ndarray | None
    kind: str


def read_mask(planes: tuple[Plane, ...], options: MaskOptions, per_class: bool = False) -> ReadMask:
    """Read the mask of one image from one file, or from several.

    Args:
        planes: where it lies; of several files, each holds an object, or a class.
        options: what the values mean, where they do not say it themselves.
        per_class: the files are those of the classes 1, 2, ... in their order.

    Raises:
        DataError: a file cannot be decoded, or its values fit no rule and no option.
    """
    if len(planes) == 1 and not per_class:
        return _read_one(planes[0], options)
    single = MaskOptions(
        instances=options.instances, ignore=options.ignore, invert=options.invert, soft=options.soft
    )
    parts = [_read_one(plane, single) for plane in planes]
    for plane, part in zip(planes, parts, strict=True):
        if part.maps.shape != parts[0].maps.shape:
            one, other = (p.maps.shape[1:] for p in (parts[0], part))
            raise DataError(f"{planes[0]} is {one} and {plane} is {other} (HxW): one image's masks")
    maps = np.stack([part.maps[0] for part in parts])
    ignored = [part.ignored for part in parts if part.ignored is not None]
    if not per_class:
        maps = maps.max(0, keepdims=True)
    kind = f"{parts[0].kind}, one file per {'class' if per_class else 'object'}"
    return ReadMask(maps, np.logical_or.reduce(ignored) if ignored else None, kind)


def _read_one(plane: Plane, options: MaskOptions) -> ReadMask:
    found = decode(plane)
    if found.frames > 1:
        raise DataError(f"{plane} holds {found.frames} frames: store one mask in a file")
    if found.cut:
        raise DataError(f"{plane} holds 16-bit colour: store the mask as 8 bits, 0 and 255")
    if found.palette is not None and int(found.pixels.max(initial=0)) >= len(found.palette):
        raise DataError(
            f"{plane} holds index {found.pixels.max()} of a palette of {len(found.palette)} "
            "colours: replace it"
        )
    try:
        return _by_options(found, options)
    except NotBinary as error:
        raise DataError(f"{plane} {error}") from error


def _by_options(found: Decoded, options: MaskOptions) -> ReadMask:
    ignored = None
    if options.colors:
        return _by_colour(found, options)
    if options.ignore is not None:
        stored = stored_values(found)
        ignored = stored == options.ignore
        found = Decoded(np.where(ignored, 0, stored), found.mode, found.format, white=found.white)
    if options.classes is not None and options.classes > 1:
        return ReadMask(_class_maps(found, options.classes), ignored, "class numbers")
    if options.instances:
        return ReadMask(_union(found)[None], ignored, "object numbers, united")
    values, kind = recognise(found, options.soft)
    if options.invert:
        values, kind = 255 - values, f"{kind}, inverted"
    return ReadMask(values[None], ignored, kind)


def recognise(found: Decoded, soft: bool = False) -> tuple[np.ndarray, str]:
    """The map and the rule of a mask that says itself what it means; NotBinary for another."""
    lossy = found.format in LOSSY
    pixels = found.pixels
    if found.mode == CLASSES:
        raise NotBinary("holds several classes: say --classes N, or --instances union for one map")
    if found.palette is not None:
        return _by_palette(pixels, found.palette, soft)
    if pixels.ndim == 2:
        if found.step > 1 and not ((pixels == 0) | (pixels == 255)).all():
            pixels = pixels // found.step
        return binary_map(pixels, white=found.white, lossy=lossy, soft=soft)
    if pixels.shape[-1] in (2, 4):
        return _with_alpha(pixels, lossy, soft)
    return binary_map(gray_of(pixels, lossy), white=found.white, lossy=lossy, soft=soft)


def gray_of(pixels: np.ndarray, lossy: bool) -> np.ndarray:
    """[H, W] of [H, W, 1 or 3] without colours; NotBinary lists the colours that there are."""
    spread = np.ptp(pixels, axis=-1)
    if int(spread.max(initial=0)) <= (4 if lossy else 0):
        return pixels[..., 0]
    raise NotBinary(
        f"holds the colours {list_colours(pixels)}: say which is the object, for example "
        f'--mask-colors "{list_colours(pixels, bright=True)}"'
    )


def list_colours(pixels: np.ndarray, bright: bool = False) -> str:
    """The most frequent colours as '#rrggbb'; `bright` the most frequent one but black."""
    codes = pixels[..., :3].reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    found, counts = np.unique(codes, return_counts=True)
    order = found[np.argsort(-counts, kind="stable")]
    if bright:
        return next(f"#{code:06x}" for code in order.tolist() if code)
    text = ", ".join(f"#{code:06x}" for code in order[:6].tolist())
    return text if len(order) <= 6 else f"{text} and {len(order) - 6} more"


def _with_alpha(pixels: np.ndarray, lossy: bool, soft: bool) -> tuple[np.ndarray, str]:
    """A mask in the colours, or in alpha where the colours are one; in both if they agree."""
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if int(alpha.min(initial=255)) == 255:
        found, kind = binary_map(gray_of(colours, lossy), lossy=lossy, soft=soft)
        return found, OPAQUE_BLACK if kind == "empty" else kind
    if int(np.ptp(colours.reshape(-1, colours.shape[-1]), axis=0).max()) == 0:
        return binary_map(alpha, lossy=lossy, soft=soft)[0], "alpha"
    by_alpha = binary_map(alpha, lossy=lossy, soft=soft)[0]
    try:
        found, kind = binary_map(gray_of(colours, lossy), lossy=lossy, soft=soft)
    except NotBinary:
        found, kind = ~by_alpha, ""
    if not np.array_equal(found >= 128, by_alpha >= 128):
        raise NotBinary(
            f"holds one mask in its alpha channel and another in its colours, "
            f"{list_colours(colours)}: store one of them, or ask for --mask-colors alpha"
        )
    return found, kind


def _by_palette(indices: np.ndarray, table: np.ndarray, soft: bool) -> tuple[np.ndarray, str]:
    """By the colours where they are black, white and gray; by the indices where those agree."""
    used = np.unique(indices)
    colours = table[used, :3]
    by_index = set(used.tolist()) <= {0, 1} and not table[0, :3].any()
    if (table[used, 3] < 255).any():
        return _with_alpha(table[indices], False, soft)
    if (table[:, :3] == table[0, :3]).all() and len(table) > 1:  # the colours mean nothing
        found, kind = binary_map(indices, soft=soft)
        return found, f"palette, indices {kind}"
    try:
        gray = gray_of(table[indices][..., :3], False)
        return binary_map(gray, soft=soft)[0], "palette, by colour"
    except NotBinary as error:
        if by_index:
            return (indices == 1).astype(np.uint8) * 255, "palette, index 1 on black"
        names = ", ".join(
            f"{i} #{bytes(c).hex()}" for i, c in list(zip(used.tolist(), colours, strict=True))[:8]
        )
        raise NotBinary(f"has a palette with indices and colours {names}; it {error}") from error


def _by_colour(found: Decoded, options: MaskOptions) -> ReadMask:
    pixels = found.pixels
    if found.palette is not None:
        pixels = found.palette[pixels]
    if options.colors == ("alpha",):
        if pixels.ndim != 3 or pixels.shape[-1] not in (2, 4):
            raise NotBinary("has no alpha channel, and --mask-colors alpha asks for it")
        values, kind = binary_map(pixels[..., -1], lossy=found.format in LOSSY, soft=options.soft)
        return ReadMask((255 - values if options.invert else values)[None], None, f"alpha, {kind}")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype != np.uint8:
        raise NotBinary(f"holds {pixels.dtype} values, and --mask-colors asks for 8-bit colours")
    if pixels.ndim == 2 or pixels.shape[-1] <= 2:
        gray = pixels if pixels.ndim == 2 else pixels[..., 0]
        pixels = np.stack([gray] * 3, -1)
    near = COLOUR_DISTANCE if found.format in LOSSY else 0
    maps = []
    for colour in options.color_values():
        apart = np.abs(pixels[..., :3].astype(np.int16) - np.array(colour, np.int16)).max(-1)
        maps.append(apart <= near)
    if options.classes is None or options.classes == 1:
        maps = [np.logical_or.reduce(maps)]
    out = np.stack(maps).astype(np.uint8) * 255
    return ReadMask(255 - out if options.invert else out, None, "by colour")


def stored_values(found: Decoded) -> np.ndarray:
    """The numbers in a file, [H, W]: indices of a palette, gray before it was spread to 8 bits."""
    if found.format in LOSSY and found.format != "JPEG2000":
        raise NotBinary(f"is a {found.format}, which changes numbers: store them as PNG")
    pixels = found.pixels
    if found.palette is not None or pixels.ndim == 2:
        if pixels.dtype == bool:
            return pixels.astype(np.uint8)
        return pixels // found.step if found.step > 1 else pixels
    colours = pixels[..., :-1] if pixels.shape[-1] in (2, 4) else pixels
    return gray_of(colours, False)


def _class_maps(found: Decoded, classes: int) -> np.ndarray:
    stored = stored_values(found)
    if found.mode == CLASSES and (stored == OVERLAP).any():
        raise NotBinary("holds pixels of two classes, and a pixel has one: part them")
    numbers = np.arange(1, classes + 1).reshape(-1, 1, 1)
    if not np.isin(stored, np.arange(classes + 1)).all():
        raise NotBinary(
            f"holds values {list_values(stored)}: with --classes {classes} a mask holds 0 for the "
            f"ground and 1 to {classes}; or say --ignore VALUE"
        )
    return (stored[None] == numbers).astype(np.uint8) * 255


def _union(found: Decoded) -> np.ndarray:
    """255 where any number, or any colour but black, marks an object."""
    if found.palette is None and found.pixels.ndim == 3:
        if found.format in LOSSY:
            raise NotBinary(f"is a {found.format}, which changes colours: store it as PNG")
        bands = found.pixels.shape[-1]
        colours = found.pixels[..., : bands - 1 if bands in (2, 4) else bands]
        marked = np.asarray(colours.astype(bool).any(-1))
        if bands in (2, 4):
            marked = marked & (found.pixels[..., -1] > 0)
        return marked.astype(np.uint8) * 255
    stored = stored_values(found)
    if (stored.dtype.kind == "f" and not np.isfinite(stored).all()) or stored.min(initial=0) < 0:
        raise NotBinary("holds NaN or negative numbers: objects are numbered from 1")
    return (stored > 0).astype(np.uint8) * 255
