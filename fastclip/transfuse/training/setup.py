"""What a run starts from: its folder, its network, its optimizer."""

from __future__ import annotations

from pathlib import Path

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Samples, Size
from fastclip.transfuse.data.split import read_split
from fastclip.transfuse.measuring.evaluate import load_samples
from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.network.initial import load_initial
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.pretrained import load_backbones
from fastclip.transfuse.storage.files import write_csv
from fastclip.transfuse.training.schedule import Budget, Schedule


def build_model(config: TrainConfig, fresh: bool = True) -> tuple[TransFuse, list[str]]:
    """The network, and lines about its first weights.

    Args:
        config: may name weights of both backbones, and a checkpoint that takes their place.
        fresh: whether such weights are read; not where a run is resumed.
    """
    model = create_model(config.model, config.classes or 1)
    if fresh and (config.pretrained or config.resnet_weights or config.deit_weights):
        load_backbones(model, resnet=config.resnet_weights, deit=config.deit_weights)
    notes = load_initial(model, config.init) if fresh and config.init is not None else []
    return model, notes


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """The schedule of the learning rate, in steps."""
    return Schedule(
        config.schedule,
        config.warmup_steps or round(config.warmup_epochs * steps_per_epoch),
        floor=config.min_lr / config.lr,
        power=config.poly_power,
        decay_steps=max(1, round(config.decay_epochs * steps_per_epoch)),
        decay_rate=config.decay_rate,
    )


def budget_of(config: TrainConfig, per_epoch: int) -> Budget:
    """When training ends; `per_epoch` is the number of steps in an epoch."""
    steps = config.epochs * per_epoch
    seconds = config.max_time * 60 if config.max_time else None
    return Budget(min(steps, config.max_steps or steps), seconds)


def recorded_split(config: TrainConfig, out: Path) -> dict[str, str] | None:
    """The side of each sample, of a run that is resumed."""
    return read_split(out / "split.csv") if config.resume else None


def load_sets(
    config: TrainConfig, size: Size, recorded: dict[str, str] | None
) -> tuple[Samples, Samples]:
    """Samples of train and val; of the split that an earlier part of the run has recorded."""
    train, val = (
        load_samples(
            config,
            split,
            size,
            seed=config.seed,
            val_fraction=config.val_fraction,
            synthetic_images=config.synthetic_images,
            recorded=recorded,
        )
        for split in ("train", "val")
    )
    return train, val


def write_split(out: Path, train: Samples, val: Samples) -> None:
    """Write the side of each sample to split.csv, and what was left out to skipped.csv."""
    if train.source.startswith("synthetic"):
        return
    sides = [(name, "train") for name in train.names] + [(name, "val") for name in val.names]
    write_csv(out / "split.csv", [{"image": name, "split": side} for name, side in sides])
    if bad := list(dict.fromkeys(train.left_out + val.left_out)):
        write_csv(out / "skipped.csv", [{"problem": text} for text in bad])
