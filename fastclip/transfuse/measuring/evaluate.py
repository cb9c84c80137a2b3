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
from fastclip.transfuse.distributed.processes import Processes
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


class _Part(NamedTuple):
    """The values of the images of a batch; on the CPU."""

    row: int  # of the first of them
    loss: Tensor  # [B]
    mae: Tensor  # [B]
    scores: Scores


@torch.no_grad()
def evaluate(
    model: TransFuse,
    samples: Samples,
    batch_size: int = 16,
    stop: Callable[[], bool] = lambda: False,
    processes: Processes | None = None,
) -> Evaluation | None:
    """Measure map_2 at the samples' size; the model is left in the mode it came in.

    A pixel belongs to the mask from a probability of 0.5 up.

    Args:
        model: on any device.
        samples: decoded pairs; a mask counts as lesion from 128 up.
        batch_size: images at a time, of all processes together.
        stop: asked before each batch; where it says True, None is returned. All processes ask
            together, and are told the same.
        processes: that share the images: each is measured once, and all know the result.
    """
    processes = processes or Processes()
    size = max(1, batch_size // processes.world)
    starts = range(0, len(samples), size)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    mine: list[_Part] = []
    try:
        for first in range(0, len(starts), processes.world):
            if stop():
                return None
            for row in starts[first + processes.rank : first + processes.rank + 1]:
                mine.append(_measured(model, samples, slice(row, row + size), device))
    finally:
        model.train(training)
    return _result([part for parts in processes.gathered(mine) for part in parts])


def _measured(model: TransFuse, samples: Samples, rows: slice, device: torch.device) -> _Part:
    images = normalise(samples.images[rows].to(device))
    masks = samples.masks[rows].to(device)
    valid = None if samples.ignored is None else samples.ignored[rows].to(device) == 0
    logits: Tensor = model(images)[2]
    loss = fastclip.structure_loss(logits, masks.float() / 255, valid=valid, reduction="none")
    errors = _absolute_errors(logits, masks >= 128, valid)
    scores = _scores(logits, masks >= 128, valid)
    return _Part(rows.start, loss.mean(1).cpu(), errors.cpu(), scores)


def _result(parts: list[_Part]) -> Evaluation:
    """Of all images, each in one part."""
    parts = sorted(parts, key=lambda part: part.row)
    scores = zip(*(part.scores for part in parts), strict=True)
    each = Scores(*(torch.cat(values) for values in scores))
    means = {name: float(values.mean()) for name, values in each._asdict().items()}
    loss, mae = (
        float(torch.cat(values).double().mean())
        for values in ([part.loss for part in parts], [part.mae for part in parts])
    )
    return Evaluation(loss=loss, **means, mae=mae, per_image=each)


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


def _absolute_errors(logits: Tensor, truth: Tensor, valid: Tensor | None) -> Tensor:
    """The mean |probability - truth| of the valid pixels of each image [B]."""
    error = (logits.float().sigmoid() - truth.float()).abs()
    if valid is None:
        return error.flatten(1).mean(1)
    counted = valid.expand_as(error).flatten(1)
    return (error.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)


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
