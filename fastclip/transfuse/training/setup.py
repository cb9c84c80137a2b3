"""What a run starts from: its folder, its network, its optimizer."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Samples, Size
from fastclip.transfuse.data.split import read_split
from fastclip.transfuse.measuring.evaluate import load_samples
from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.network.initial import load_initial
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.pretrained import load_backbones
from fastclip.transfuse.storage.checkpoint import CheckpointError, load_checkpoint, require
from fastclip.transfuse.storage.files import write_csv
from fastclip.transfuse.training.schedule import Schedule

RUN_FILES = (
    *("best.pt", "last.pt", "metrics.csv", "steps.csv", "curves.png", "overlays.png"),
    *("split.csv", "skipped.csv", "trace.json", "profile.csv"),
)
STATE = ("step", "epoch", "batch", "validated", "seconds", "best", "rng", "rng_cuda", "record")


def claim_folder(config: TrainConfig) -> tuple[Path, dict[str, Any] | None]:
    """Make the output folder.

    Returns:
        The folder, and the checkpoint to go on from where `config.resume` asks for one.

    Raises:
        CheckpointError: the folder holds another run, or none to resume.
        ValueError: the folder cannot be made.
    """
    out = config.out or Path(f"runs/{config.model}-{time.strftime('%Y%m%d-%H%M%S')}")
    if config.resume:
        content = load_checkpoint(out / "last.pt")
        _require_same(content, config, out / "last.pt")
        return out, content
    if not config.overwrite and any((out / name).exists() for name in RUN_FILES[:2]):
        raise CheckpointError(
            f"--out {out} holds an earlier run: --resume continues it, --overwrite replaces it, "
            "or choose another folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}") from error
    return out, None


def _require_same(content: dict[str, Any], config: TrainConfig, file: Path) -> None:
    if "optimizer" not in content:
        raise CheckpointError(f"{file} holds no optimizer state: resume from a last.pt")
    require(content, file, "model", "weights", "config", *STATE)
    for key in TrainConfig.SAME_ON_RESUME:
        new = asdict(config)[key]
        # What the version that wrote the file did not have was as the default is.
        old = content["config"].get(key, getattr(TrainConfig, key))
        if _plain(old) != _plain(new):
            flag = key.replace("_", "-")
            raise CheckpointError(
                f"{file} was trained with --{flag} {old}, not {new}: give the same, or start a "
                "new run in another --out"
            )


def _plain(value: object) -> object:
    """One name and a sequence of one name are the same."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 else tuple(value)
    return value


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
