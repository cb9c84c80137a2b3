"""A model measured on decoded samples at their own size, as after each epoch of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import fastclip
from fastclip.transfuse.config.data import DataConfig
from fastclip.transfuse.data.load import load_split
from fastclip.transfuse.data.samples import Samples, Size
from fastclip.transfuse.data.synthetic import synthetic_samples
from fastclip.transfuse.measuring.metrics import Scores, binary_scores
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.normalise import normalise


class Evaluation(NamedTuple):
    """Means over images and classes, and the values of each image [N, C].

    NaN wherever a map holds a value that is not finite: that is no prediction, and scores nothing.
    """

    loss: float
    dice: float
    iou: float
    accuracy: float
    precision: float
    sensitivity: float
    specificity: float
    mae: float
    per_image: Scores

    def __str__(self) -> str:
        text = (
            f"loss {self.loss:.4f}  Dice {self.dice:.4f}  IoU {self.iou:.4f}  "
            f"accuracy {self.accuracy:.4f}"
        )
        if self.per_image.dice.shape[1] > 1:
            each = self.per_image.dice.mean(0).tolist()
            text += "  Dice per class " + " ".join(f"{value:.4f}" for value in each)
        return text


@torch.no_grad()
def evaluate(
    model: TransFuse,
    samples: Samples,
    batch_size: int = 16,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Measure map_2 at the samples' size; the model is left in the mode it came in.

    A pixel belongs to the mask from a probability of 0.5 up.

    Args:
        model: on any device.
        samples: decoded pairs; a mask counts as lesion from 128 up.
        batch_size: images at a time.
        stop: asked before each batch; where it says True, None is returned.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    losses, errors, scores = 0.0, 0.0, []
    try:
        for row in range(0, len(samples), batch_size):
            if stop():
                return None
            rows = slice(row, row + batch_size)
            images = normalise(samples.images[rows].to(device))
            masks = samples.masks[rows].to(device)
            valid = None if samples.ignored is None else samples.ignored[rows].to(device) == 0
            logits: Tensor = model(images)[2]
            loss = fastclip.structure_loss(logits, masks.float() / 255, valid=valid)
            losses += float(loss) * len(masks)
            errors += float(_absolute_error(logits, masks >= 128, valid)) * len(masks)
            scores.append(_scores(logits, masks >= 128, valid))
    finally:
        model.train(training)
    each = Scores(*(torch.cat(values) for values in zip(*scores, strict=True)))
    means = {name: float(values.mean()) for name, values in each._asdict().items()}
    count = len(samples)
    return Evaluation(loss=losses / count, **means, mae=errors / count, per_image=each)


def _scores(logits: Tensor, truth: Tensor, valid: Tensor | None) -> Scores:
    """Scores of each image and class, [B, C] each, on the CPU; NaN of maps that are not finite."""
    shape = truth.shape[:2]
    if valid is not None:
        valid = valid.expand_as(truth).flatten(0, 1)
    scores = binary_scores((logits >= 0).flatten(0, 1), truth.flatten(0, 1), valid)
    finite = logits.flatten(2).isfinite().all(2)
    return Scores(
        *(values.view(shape).where(finite, float("nan")).cpu() for values in scores),
    )


def _absolute_error(logits: Tensor, truth: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over images of the mean |probability - truth| of their valid pixels."""
    error = (logits.float().sigmoid() - truth.float()).abs()
    if valid is None:
        return error.mean()
    counted = valid.expand_as(error).flatten(1)
    return ((error.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()


def load_samples(
    config: DataConfig,
    split: str,
    size: Size,
    *,
    seed: int,
    val_fraction: float,
    synthetic_images: int,
    recorded: dict[str, str] | None = None,
) -> Samples:
    """`load_split`, or synthetic pairs; train and val of those come from different seeds."""
    if config.data == "synthetic":
        if split == "train":
            return synthetic_samples(synthetic_images, size, seed=2 * seed)
        return synthetic_samples(max(1, synthetic_images // 8), size, seed=2 * seed + 1)
    return load_split(
        config.data,
        split,
        size,
        seed=seed,
        val_fraction=val_fraction,
        options=config.read_options(),
        hold_out=True,
        recorded=recorded,
    )
