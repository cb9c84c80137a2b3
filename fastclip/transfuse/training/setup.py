"""What a run starts from: its folder, its network, its optimizer."""

from __future__ import annotations

from pathlib import Path

import torch

import fastclip
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Samples, Size
from fastclip.transfuse.data.split import read_split
from fastclip.transfuse.measuring.evaluate import load_samples
from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.pretrained import load_backbones
from fastclip.transfuse.storage.files import write_csv
from fastclip.transfuse.training.schedule import Budget


def build_model(config: TrainConfig) -> TransFuse:
    """The network, from ImageNet weights where the configuration names any."""
    model = create_model(config.model, config.classes or 1)
    if config.pretrained or config.resnet_weights or config.deit_weights:
        load_backbones(model, resnet=config.resnet_weights, deit=config.deit_weights)
    return model


def build_optimizer(model: TransFuse, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam as published or AdamW, over the groups of `fastclip.param_groups`."""
    groups = fastclip.param_groups(model, lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
    return torch.optim.Adam(groups, lr=config.lr, betas=(0.5, 0.999), fused=True)


def budget_of(config: TrainConfig, per_epoch: int) -> Budget:
    """When training ends; `per_epoch` is the number of steps in an epoch."""
    steps = config.epochs * per_epoch
    seconds = config.max_time * 60 if config.max_time else None
    return Budget(min(steps, config.max_steps or steps), seconds)


def load_sets(config: TrainConfig, size: Size, out: Path) -> tuple[Samples, Samples]:
    """Samples of train and val; of the split that `out` has recorded, where it is resumed."""
    recorded = read_split(out / "split.csv") if config.resume else None
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
