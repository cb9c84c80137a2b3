"""Masks, probabilities and overlays for images of any size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastclip.transfuse.config.checks import torch_device
from fastclip.transfuse.config.prediction import PredictConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.decoder import in_threads, resize
from fastclip.transfuse.data.formats import Plane
from fastclip.transfuse.data.images import read_image
from fastclip.transfuse.data.options import Intensity
from fastclip.transfuse.data.samples import DataError, Size, printable
from fastclip.transfuse.distributed.launch import require_alone
from fastclip.transfuse.errors import RunError, usage_errors
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.prediction.ensemble import (
    NO_PREDICTION,
    Ensemble,
    Member,
    load_ensemble,
    mean_probability,
)
from fastclip.transfuse.prediction.inputs import find_images
from fastclip.transfuse.recording.pictures import PREDICTION, tint_all, write_png
from fastclip.transfuse.safety.failures import explained

ENDINGS = {"masks": "_mask.png", "probabilities": "_prob.png", "overlays": "_overlay.png"}


def predict_probabilities(ensemble: Ensemble, images: list[np.ndarray]) -> list[np.ndarray]:
    """Segment images at the sizes of training, and bring the maps back to the images' sizes.

    Args:
        ensemble: on any device.
        images: uint8 [H, W, 3] each, of any sizes.

    Returns:
        float32 [C, H, W] of each image; NaN where the network gives none.
    """
    views = ensemble.logits({size: _batch(images, size) for size in ensemble.sizes})
    return [
        mean_probability([view[row] for view in views], image.shape[:2]).cpu().numpy()
        for row, image in enumerate(images)
    ]


def _batch(images: list[np.ndarray], size: Size) -> Tensor:
    """uint8 [B, 3, H, W], of (H, W) `size`."""
    small = np.stack([resize(Image.fromarray(image), size) for image in images])
    return torch.from_numpy(small).permute(0, 3, 1, 2)


def predict_mask(
    model: TransFuse, image: np.ndarray, size: Size, threshold: float = 0.5
) -> np.ndarray:
    """The mask of one image uint8 [H, W, 3] by a model of one map: bool [H, W].

    Raises:
        RunError: the network gives NaN or infinity.
    """
    (probabilities,) = predict_probabilities(Ensemble([Member(model, size)]), [image])
    if not np.isfinite(probabilities).all():
        raise RunError(NO_PREDICTION)
    return probabilities[0] >= threshold


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


@explained()
def run_predict(config: PredictConfig) -> int:
    """`fastclip predict`: results of all images that can be read; 1 where any cannot."""
    with usage_errors():
        require_alone()
        device = torch_device(config.device)
        config.check()
        found = find_images(config.images, config.out, config.recursive)
        ensemble, trained = load_ensemble(
            config.checkpoint, config.model, tta=config.tta, scales=config.tta_scales
        )
        intensity = config.intensity or _intensity(trained)
        config.out.mkdir(parents=True, exist_ok=True)
    classes = ensemble.classes
    todo = [(config.out / name, plane) for name, plane in found.planes.items()]
    if not config.overwrite:
        todo = [(stem, plane) for stem, plane in todo if not _exists(stem, config, classes)]
    ensemble.to(device)
    bad: list[str] = []
    with tqdm(total=len(todo), unit="image", disable=not sys.stderr.isatty()) as bar:
        for batch in _batches(todo, config.batch_size):
            images = _read([plane for _, plane in batch], intensity, bad)
            found_ones = [(*one, i) for one, i in zip(batch, images, strict=True) if i is not None]
            if found_ones:
                maps = predict_probabilities(ensemble, [image for *_, image in found_ones])
                for (stem, plane, image), probabilities in zip(found_ones, maps, strict=True):
                    if np.isfinite(probabilities).all():
                        write_results(stem, image, probabilities, config)
                    else:
                        bad.append(f"{plane}: {NO_PREDICTION}")
            bar.update(len(batch))
    _report(config, len(todo) - len(bad), len(found.planes) - len(todo), found.skipped, bad)
    return 1 if bad else 0


def _intensity(trained: list[TrainConfig]) -> Intensity:
    """As in training; ValueError where the networks were trained differently."""
    kinds = {config.intensity for config in trained}
    if len(kinds) > 1:
        raise ValueError("--checkpoint names networks trained with either --intensity: give one")
    return kinds.pop()


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
