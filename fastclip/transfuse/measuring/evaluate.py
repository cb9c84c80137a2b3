"""Loss, Dice, IoU and accuracy of a model on decoded samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastclip
from fastclip.transfuse.config.checks import image_size, torch_device
from fastclip.transfuse.config.data import MASK_FLAGS, DataConfig
from fastclip.transfuse.config.evaluation import EvaluateConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.load import load_split
from fastclip.transfuse.data.samples import Samples, Size, printable
from fastclip.transfuse.data.synthetic import synthetic_samples
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.measuring.metrics import Scores, binary_scores
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.storage.checkpoint import load_model, trained_config
from fastclip.transfuse.storage.files import write_csv


class Evaluation(NamedTuple):
    """Means over images and classes, and the values of each image [N, C]."""

    loss: float
    dice: float
    iou: float
    accuracy: float
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
            rows = slice(row, row + batch_size)
            images = normalise(samples.images[rows].to(device))
            masks = samples.masks[rows].to(device)
            valid = None if samples.ignored is None else samples.ignored[rows].to(device) == 0
            logits: Tensor = model(images)[2]
            loss = fastclip.structure_loss(logits, masks.float() / 255, valid=valid)
            losses += float(loss) * len(masks)
            scores.append(_scores(logits > 0, masks >= 128, valid))
    finally:
        model.train(training)
    each = Scores(*(torch.cat(values) for values in zip(*scores, strict=True)))
    dice, iou, accuracy = (float(values.mean()) for values in each)
    return Evaluation(losses / len(samples), dice, iou, accuracy, each)


def _scores(prediction: Tensor, truth: Tensor, valid: Tensor | None) -> Scores:
    """Scores of each image and class, [B, C] each, on the CPU."""
    shape = truth.shape[:2]
    if valid is not None:
        valid = valid.expand_as(truth).flatten(0, 1)
    scores = binary_scores(prediction.flatten(0, 1), truth.flatten(0, 1), valid)
    return Scores(*(values.view(shape).cpu() for values in scores))


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


def _as_trained(config: EvaluateConfig, trained: TrainConfig) -> EvaluateConfig:
    """What is read as in training: the meaning of masks where no flag gives it, and the split."""
    if not any(getattr(config, flag) != getattr(EvaluateConfig, flag) for flag in MASK_FLAGS):
        config = replace(config, **{flag: getattr(trained, flag) for flag in MASK_FLAGS})
    if (config.fold, config.group_by) == (None, None):
        config = replace(config, fold=trained.fold, group_by=trained.group_by)
    return config


def run_evaluate(config: EvaluateConfig) -> int:
    """`fastclip evaluate`: print one line (and one per data set), write a CSV where asked for."""
    with usage_errors():
        device = torch_device(config.device)
        config.check()
        model, content = load_model(config.checkpoint, config.model)
        trained = trained_config(content)
        config = _as_trained(config, trained)
        size = image_size(config.size or trained.size, content["model"])
        samples = load_samples(
            config,
            config.split,
            size,
            seed=trained.seed,
            val_fraction=trained.val_fraction,
            synthetic_images=trained.synthetic_images,
        )
        if samples.masks.shape[1] != model.num_classes:
            raise ValueError(
                f"{printable(config.checkpoint)} predicts {model.num_classes} map(s), and the "
                f"masks are read into {samples.masks.shape[1]}: give --classes as in training"
            )
        if config.csv is not None:
            config.csv.parent.mkdir(parents=True, exist_ok=True)
    for note in samples.notes:
        print(printable(note))
    result = evaluate(model.to(device), samples, config.batch_size)
    assert result is not None
    print(f"{samples.source}, {len(samples)} images at {size[0]}x{size[1]}: {result}")
    for name, rows in sets_of(samples).items():
        dice, iou, accuracy = (float(values[rows].mean()) for values in result.per_image)
        scores = f"Dice {dice:.4f}  IoU {iou:.4f}  accuracy {accuracy:.4f}"
        print(f"  {name:24}{len(rows):6} images  {scores}")
    if config.csv is not None:
        write_csv(config.csv, image_rows(samples, result.per_image))
    return 0


def sets_of(samples: Samples) -> dict[str, list[int]]:
    """Rows of each data set, where there are several."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(samples.sets):
        rows.setdefault(name, []).append(row)
    return rows


def image_rows(samples: Samples, scores: Scores) -> list[dict[str, Any]]:
    """One row of means per image; with several classes, the Dice of each as well."""
    rows = []
    for index, name in enumerate(samples.names):
        row: dict[str, Any] = {"image": name}
        row |= {key: float(values[index].mean()) for key, values in scores._asdict().items()}
        if scores.dice.shape[1] > 1:
            dice = scores.dice[index].tolist()
            row |= {f"dice_{number}": value for number, value in enumerate(dice, 1)}
        rows.append(row)
    return rows
