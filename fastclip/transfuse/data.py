"""Images and masks, decoded and resized once, kept in memory as uint8."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS = ("", "_segmentation", "_mask")  # of the mask's stem after the image's

Size = tuple[int, int]  # H, W


class DataError(ValueError):
    """Data that cannot be trained on; the text names the file and what to do."""


@dataclass(frozen=True)
class Samples:
    """Decoded pairs: images uint8 [N, 3, H, W], masks uint8 [N, 1, H, W] of 0..255."""

    images: Tensor
    masks: Tensor
    names: list[str]
    source: str  # as it shall stand beside every number

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: list[int]) -> Samples:
        """The given rows, in their order."""
        names = [self.names[row] for row in rows]
        return Samples(self.images[rows], self.masks[rows], names, self.source)


def load_split(
    data: str, split: str, size: Size, *, seed: int = 0, val_fraction: float = 0.1
) -> Samples:
    """Load one part of a data folder.

    Args:
        data: folder with `<split>/{images,masks}`, or `{images,masks}` (train and val are then
            `val_fraction` apart, the same for the same seed), or `data_<split>.npy` with
            `mask_<split>.npy` (uint8 [N, H, W, 3] and [N, H, W]).
        split: 'train', 'val', 'test', or 'all' (of `{images,masks}`).
        size: (H, W) that everything is resized to.

    Raises:
        DataError: no such data, an image without its mask or the reverse, a damaged file, a pair
            of two sizes, or more than the memory holds.
    """
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"--data {data}: no such folder (or say 'synthetic')")
    if (root / split / "images").is_dir():
        return load_pairs(find_pairs(root / split), size, source=f"{root.name} {split}")
    if (root / f"data_{split}.npy").is_file():
        return _load_arrays(root, split, size)
    if (root / "images").is_dir() and split in ("train", "val", "all"):
        pairs = find_pairs(root)
        if split != "all":
            pairs = [pairs[row] for row in split_rows(len(pairs), split, val_fraction, seed)]
        return load_pairs(pairs, size, source=f"{root.name} {split}")
    raise DataError(
        f"--data {data}: no {split} data there; expected {split}/images and {split}/masks, or "
        f"images and masks, or data_{split}.npy and mask_{split}.npy"
    )


def split_rows(count: int, split: str, val_fraction: float, seed: int) -> list[int]:
    """Sorted rows of 'train' or 'val' when `count` samples are parted by fraction."""
    held_out = max(1, round(count * val_fraction))
    if held_out >= count:
        raise DataError(f"{count} image(s) cannot be parted into train and val: add images")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[:held_out] if split == "val" else order[held_out:])


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder by name; DataError where there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Match `images/` and `masks/` by stem; the mask may add _segmentation or _mask."""
    images = by_stem(list_images(folder / "images"))
    masks = by_stem(list_images(folder / "masks"))
    pairs = []
    for stem, image in images.items():
        mask = next((masks.pop(stem + end) for end in MASK_ENDINGS if stem + end in masks), None)
        if mask is None:
            raise DataError(
                f"{image} has no mask: add {folder / 'masks' / stem}.png, or remove the image"
            )
        pairs.append((image, mask))
    if masks:
        orphan = next(iter(masks.values()))
        raise DataError(f"{orphan} has no image in {folder / 'images'}: add it, or remove the mask")
    return pairs


def by_stem(files: list[Path]) -> dict[str, Path]:
    """Files by name without suffix; DataError where two share one."""
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise DataError(f"{found[file.stem]} and {file} share one name: remove one of them")
        found[file.stem] = file
    return found


def load_pairs(pairs: list[tuple[Path, Path]], size: Size, source: str) -> Samples:
    """Decode and resize pairs on all cores."""

    def load(row: int) -> None:
        image, mask = _read_pair(*pairs[row], size)
        images[row] = torch.from_numpy(image).permute(2, 0, 1)
        masks[row, 0] = torch.from_numpy(mask)

    images, masks = _allocate(len(pairs), size)
    _in_threads(load, range(len(pairs)))
    return Samples(images, masks, [image.stem for image, _ in pairs], source)


def _in_threads(work: Callable[[int], None], rows: Iterable[int]) -> None:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for _ in pool.map(work, rows):  # in order, so that the first bad file is reported
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _allocate(count: int, size: Size) -> tuple[Tensor, Tensor]:
    needed, free = count * size[0] * size[1] * 4, _available_bytes()
    if free is not None and needed > 0.8 * free:
        raise DataError(
            f"{count} images at {size[0]}x{size[1]} need {needed / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free: use a smaller --size, or fewer images"
        )
    images = torch.empty(count, 3, *size, dtype=torch.uint8)
    return images, torch.empty(count, 1, *size, dtype=torch.uint8)


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: no check
        return None
    return next((int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable")), None)


def open_image(file: Path) -> Image.Image:
    """Open and fully decode a file; DataError names one that cannot be."""
    try:
        image = Image.open(file)
        image.load()
    # PIL raises SyntaxError for a broken PNG, and its own class for a decompression bomb.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} cannot be read ({error}): replace it, or remove it with its partner"
        ) from error
    return image


def _read_pair(image_file: Path, mask_file: Path, size: Size) -> tuple[np.ndarray, np.ndarray]:
    image, mask = open_image(image_file), open_image(mask_file)
    if image.size != mask.size:
        raise DataError(
            f"{image_file} is {image.height}x{image.width} and {mask_file} is "
            f"{mask.height}x{mask.width} (HxW): a mask must have its image's size"
        )
    return resize(image.convert("RGB"), size), resize(_gray_mask(mask, mask_file), size)


def _gray_mask(mask: Image.Image, file: Path) -> Image.Image:
    """0..255 of a 1-bit, 0/1, 0/255, gray, palette (by index) or colour mask."""
    if mask.mode.startswith(("I", "F")):
        raise DataError(f"{file} has mode {mask.mode}: store the mask as 8 bits, 0 and 255")
    values = np.asarray(mask if mask.mode == "P" else mask.convert("L"))
    return Image.fromarray(_to_255(values, str(file)))


def _to_255(values: np.ndarray, what: str) -> np.ndarray:
    top = int(values.max(initial=0))
    if top <= 1:
        return (values * 255).astype(np.uint8)
    if top < 128:
        raise DataError(
            f"{what} holds values 0..{top}: a mask is 0 and 1, or 0 and 255; for class numbers, "
            "store one mask per class"
        )
    return values.astype(np.uint8)


def resize(image: Image.Image, size: Size) -> np.ndarray:
    """Antialiased bilinear resize to (H, W); the array of an image that has it already."""
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image)


def _load_arrays(root: Path, split: str, size: Size) -> Samples:
    """The published layout: uint8 [N, H, W, 3] and [N, H, W]."""
    image_file, mask_file = root / f"data_{split}.npy", root / f"mask_{split}.npy"
    images, masks = _read_array(image_file), _read_array(mask_file)
    if images.ndim != 4 or images.shape[-1] != 3 or masks.shape != images.shape[:3]:
        raise DataError(
            f"{image_file} is {list(images.shape)} and {mask_file} is {list(masks.shape)}: "
            "expected [N, H, W, 3] and [N, H, W]"
        )
    if not len(images):
        raise DataError(f"{image_file} holds no images")

    def load(row: int) -> None:
        image = resize(Image.fromarray(images[row]), size)
        mask = resize(Image.fromarray(_to_255(masks[row], f"{mask_file}[{row}]")), size)
        out_images[row] = torch.from_numpy(image).permute(2, 0, 1)
        out_masks[row, 0] = torch.from_numpy(mask)

    out_images, out_masks = _allocate(len(images), size)
    _in_threads(load, range(len(images)))
    names = [f"{split}_{row:05d}" for row in range(len(images))]
    return Samples(out_images, out_masks, names, f"{root.name} {split}")


def _read_array(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read ({error}): write it with numpy.save") from error
    if array.dtype != np.uint8:
        raise DataError(f"{file} holds {array.dtype}: expected uint8")
    return array
