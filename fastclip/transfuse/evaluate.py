"""Loss, Dice, IoU and accuracy of a model on decoded samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import fastclip
from fastclip.transfuse.augment import normalise
from fastclip.transfuse.checkpoint import load_model, write_csv
from fastclip.transfuse.config import EvaluateConfig, image_size, torch_device, usage_errors
from fastclip.transfuse.data.load import load_split
from fastclip.transfuse.data.samples import Samples, Size
from fastclip.transfuse.metrics import Scores, binary_scores
from fastclip.transfuse.model import TransFuse
from fastclip.transfuse.synthetic import synthetic_samples


class Evaluation(NamedTuple):
    """Means over the images, and the values of each image."""

    loss: float
    dice: float
    iou: float
    accuracy: float
    per_image: Scores

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}  Dice {self.dice:.4f}  IoU {self.iou:.4f}  "
            f"accuracy {self.accuracy:.4f}"
        )


@torch.no_grad()
def evaluate(
    model: TransFuse,
    samples: Samples,
    batch_size: int = 16,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluate map_2 at the samples' size; the model is left in the mode it came in.

    Args:
        model: on any device.
        samples: decoded pairs; a mask counts as lesion from 128 up.
        batch_size: images at a time.
        stop: asked before each batch; where it says True, None is returned.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    losses, scores = 0.0, []
    try:
        for row in range(0, len(samples), batch_size):
            if stop():
                return None
            images = normalise(samples.images[row : row + batch_size].to(device))
            masks = samples.masks[row : row + batch_size].to(device)
            logits: Tensor = model(images)[2]
            losses += float(fastclip.structure_loss(logits, masks.float() / 255)) * len(masks)
            scores.append(Scores(*(s.cpu() for s in binary_scores(logits > 0, masks >= 128))))
    finally:
        model.train(training)
    each = Scores(*(torch.cat(values) for values in zip(*scores, strict=True)))
    dice, iou, accuracy = (float(values.mean()) for values in each)
    return Evaluation(losses / len(samples), dice, iou, accuracy, each)


def load_samples(
    data: str, split: str, size: Size, *, seed: int, val_fraction: float, synthetic_images: int
) -> Samples:
    """`load_split`, or synthetic pairs; train and val of those come from different seeds."""
    if data != "synthetic":
        return load_split(data, split, size, seed=seed, val_fraction=val_fraction)
    if split == "train":
        return synthetic_samples(synthetic_images, size, seed=2 * seed)
    return synthetic_samples(max(1, synthetic_images // 8), size, seed=2 * seed + 1)


def run_evaluate(config: EvaluateConfig) -> int:
    """`fastclip evaluate`: print one line, write a CSV where asked for."""
    with usage_errors():
        device = torch_device(config.device)
        if config.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {config.batch_size}")
        model, content = load_model(config.checkpoint)
        trained = content["config"]
        size = image_size(config.size or trained["size"], content["model"])
        samples = load_samples(
            config.data,
            config.split,
            size,
            seed=trained["seed"],
            val_fraction=trained["val_fraction"],
            synthetic_images=trained["synthetic_images"],
        )
        if config.csv is not None:
            config.csv.parent.mkdir(parents=True, exist_ok=True)
    result = evaluate(model.to(device), samples, config.batch_size)
    assert result is not None
    print(f"{samples.source}, {len(samples)} images at {size[0]}x{size[1]}: {result}")
    if config.csv is not None:
        scores = zip(samples.names, *(v.tolist() for v in result.per_image), strict=True)
        keys = ("image", "dice", "iou", "accuracy")
        write_csv(config.csv, [dict(zip(keys, row, strict=True)) for row in scores])
    return 0
