"""Small pairs of images and masks on disk, for tests of what the trainer reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (32, 48)  # H, W

Draw = Callable[[np.ndarray], Any]


def pair(row: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3], dark where bool [H, W] is set: an object left of the middle."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = ((y - 14 - row % 5) / 9) ** 2 + ((x - 16) / 8) ** 2 < 1
    image = np.full((*SIZE, 3), 200, np.uint8)
    image[mask] = 80
    image[0, 0] = row % 256
    return image, mask


def gray(mask: np.ndarray) -> Image.Image:
    """0 and 255."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def write(
    root: Path,
    image: str = "images/{}.png",
    mask: str | None = "masks/{}.png",
    count: int = 4,
    first: int = 0,
    draw: Draw = gray,
    draw_image: Draw = Image.fromarray,
    stem: str = "case{:02d}",
    **options: Any,
) -> Path:
    """Pairs under `root`, by patterns of the stem; `options` go to the image's save()."""
    for row in range(first, first + count):
        pixels, truth = pair(row)
        name = stem.format(row)
        todo = [(image, draw_image(pixels), options)]
        if mask is not None:
            todo.append((mask, draw(truth), {}))
        for pattern, picture, keys in todo:
            file = root / pattern.format(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file, **keys)
    return root


def truths(count: int = 4, first: int = 0) -> np.ndarray:
    """The masks of `write`, bool [N, H, W]."""
    return np.stack([pair(row)[1] for row in range(first, first + count)])
