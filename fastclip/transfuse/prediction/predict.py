"""Masks, probabilities and overlays for images of any size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastclip.transfuse.config.checks import image_size, torch_device
from fastclip.transfuse.config.prediction import PredictConfig
from fastclip.transfuse.data.decoder import in_threads, resize
from fastclip.transfuse.data.formats import Plane
from fastclip.transfuse.data.images import read_image
from fastclip.transfuse.data.options import Intensity
from fastclip.transfuse.data.samples import DataError, Size, printable
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.prediction.inputs import find_images
from fastclip.transfuse.recording.pictures import PREDICTION, tint_all, write_png
from fastclip.transfuse.storage.checkpoint import load_model, trained_config

ENDINGS = {"masks": "_mask.png", "probabilities": "_prob.png", "overlays": "_overlay.png"}
FLIPS = ((), (3,), (2,), (2, 3))  # axes of [B, C, H, W]


@torch.no_grad()
def predict_probabilities(
    model: TransFuse, images: list[np.ndarray], size: Size, tta: str = "none"
) -> list[np.ndarray]:
    """Segment images at the size of training, and bring the maps back to the images' sizes.

    Args:
        model: in eval mode, on any device.
        images: uint8 [H, W, 3] each, of any sizes.
        size: (H, W) that the model was trained at.
        tta: 'flips' averages the probabilities of the image and its three mirror images.

    Returns:
        float32 [C, H, W] of each image.
    """
    device = next(model.parameters()).device
    small = np.stack([resize(Image.fromarray(image), size) for image in images])
    batch = normalise(torch.from_numpy(small).permute(0, 3, 1, 2).to(device))
    if tta == "none":
        return [
            _enlarge(logits, image).sigmoid().cpu().numpy()
            for logits, image in zip(model(batch)[2], images, strict=True)
        ]
    flips = [model(batch.flip(axes))[2].flip(axes) for axes in FLIPS]
    return [
        torch.stack([_enlarge(logits[row], image).sigmoid() for logits in flips])
        .mean(0)
        .cpu()
        .numpy()
        for row, image in enumerate(images)
    ]


def _enlarge(logits: Tensor, image: np.ndarray) -> Tensor:
    """[C, h, w] at the image's size."""
    size = image.shape[:2]
    return F.interpolate(logits[None].float(), size, mode="bilinear", align_corners=False)[0]


def predict_mask(
    model: TransFuse, image: np.ndarray, size: Size, threshold: float = 0.5
) -> np.ndarray:
    """The mask of one image uint8 [H, W, 3] by a model of one map: bool [H, W]."""
    return predict_probabilities(model, [image], size)[0][0] >= threshold


def write_results(
    stem: Path, image: np.ndarray, probabilities: np.ndarray, config: PredictConfig
) -> None:
    """Write what `config.save` asks for; RunError where that fails."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    sure = probabilities >= config.threshold
    # With several classes a pixel gets the number of the likeliest, 0 where none is likely.
    best = probabilities.argmax(0)
    only = sure & (np.arange(len(sure))[:, None, None] == best)
    for kind in config.save:
        file = stem.with_name(stem.name + ENDINGS[kind])
        if kind == "masks":
            single = sure[0].astype(np.uint8) * 255
            numbers = np.where(only.any(0), best + 1, 0).astype(np.uint8)
            write_png(file, single if len(sure) == 1 else numbers)
        elif kind == "overlays":
            write_png(file, tint_all(image, only, PREDICTION))
        else:
            _write_probabilities(stem, probabilities)


def _write_probabilities(stem: Path, probabilities: np.ndarray) -> None:
    for number, values in enumerate(probabilities, 1):
        part = f"_class{number}" if len(probabilities) > 1 else ""
        gray = np.rint(values.astype(np.float64) * 65535).astype(np.uint16)
        write_png(stem.with_name(f"{stem.name}{part}{ENDINGS['probabilities']}"), gray)


def _exists(stem: Path, config: PredictConfig, classes: int) -> bool:
    """Whether every result of an image is there."""
    for kind in config.save:
        parts = [f"_class{n + 1}" for n in range(classes)]
        parts = parts if kind == "probabilities" and classes > 1 else [""]
        if not all(stem.with_name(f"{stem.name}{p}{ENDINGS[kind]}").exists() for p in parts):
            return False
    return True


def _read(planes: list[Plane], intensity: Intensity, bad: list[str]) -> list[np.ndarray | None]:
    """Decode images on all cores; None for one that cannot be, which `bad` then names."""
    images: list[np.ndarray | None] = [None] * len(planes)
    errors: dict[int, str] = {}

    def load(row: int) -> None:
        try:
            images[row] = read_image(planes[row], intensity).pixels
        except DataError as error:
            errors[row] = str(error)

    in_threads(load, len(planes))
    bad += [errors[row] for row in sorted(errors)]
    return images


def _batches(todo: list[tuple[Path, Plane]], size: int) -> Iterator[list[tuple[Path, Plane]]]:
    for first in range(0, len(todo), size):
        yield todo[first : first + size]


def run_predict(config: PredictConfig) -> int:
    """`fastclip predict`: results of all images that can be read; 1 where any cannot."""
    with usage_errors():
        device = torch_device(config.device)
        config.check()
        found = find_images(config.images, config.out, config.recursive)
        model, content = load_model(config.checkpoint, config.model)
        trained = trained_config(content)
        size = image_size(trained.size, content["model"])
        config.out.mkdir(parents=True, exist_ok=True)
    classes = model.num_classes
    todo = [(config.out / name, plane) for name, plane in found.planes.items()]
    if not config.overwrite:
        todo = [(stem, plane) for stem, plane in todo if not _exists(stem, config, classes)]
    model.to(device)
    bad: list[str] = []
    with tqdm(total=len(todo), unit="image", disable=not sys.stderr.isatty()) as bar:
        for batch in _batches(todo, config.batch_size):
            intensity = config.intensity or trained.intensity
            images = _read([plane for _, plane in batch], intensity, bad)
            pairs = [(s, i) for (s, _), i in zip(batch, images, strict=True) if i is not None]
            if pairs:
                maps = predict_probabilities(model, [i for _, i in pairs], size, config.tta)
                for (stem, image), probabilities in zip(pairs, maps, strict=True):
                    write_results(stem, image, probabilities, config)
            bar.update(len(batch))
    _report(config, len(todo) - len(bad), len(found.planes) - len(todo), found.skipped, bad)
    return 1 if bad else 0


def _report(
    config: PredictConfig, done: int, kept: int, skipped: dict[str, int], bad: list[str]
) -> None:
    print(f"{done} images segmented, results in {printable(config.out)}")
    if kept:
        print(f"{kept} kept as they were: --overwrite replaces them")
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        print(f"skipped, as no image: {kinds}")
    for text in bad:
        print(f"fastclip: error: {text}", file=sys.stderr)
