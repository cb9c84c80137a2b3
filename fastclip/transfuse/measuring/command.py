"""`fastclip evaluate`: checkpoints measured on a data set, alone or against others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastclip
from fastclip.transfuse.config.checks import torch_device
from fastclip.transfuse.config.data import MASK_FLAGS
from fastclip.transfuse.config.evaluation import EvaluateConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.options import MaskOptions
from fastclip.transfuse.data.samples import Samples, printable
from fastclip.transfuse.distributed.launch import require_alone
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.measuring import tables
from fastclip.transfuse.measuring.earlier import read_scores
from fastclip.transfuse.measuring.evaluate import load_samples
from fastclip.transfuse.measuring.held_out import independent, require_held_out
from fastclip.transfuse.measuring.image import Rules
from fastclip.transfuse.measuring.measure import measure, search_threshold
from fastclip.transfuse.measuring.saliency import require_pysodmetrics
from fastclip.transfuse.measuring.summary import Measured
from fastclip.transfuse.prediction.ensemble import Ensemble, load_ensemble
from fastclip.transfuse.safety.failures import explained
from fastclip.transfuse.storage.files import write_csv, write_file

STDOUT = Path("-")
FEW = 10  # independent images, under which bootstrap intervals are visibly too narrow


@dataclass(frozen=True)
class Task:
    """Networks, and the images that they are measured on."""

    ensemble: Ensemble
    samples: Samples
    masks: MaskOptions
    groups: list[str]

    def measure(self, rules: Rules, batch_size: int) -> Measured:
        """Score every image."""
        return measure(self.ensemble, self.samples, self.groups, self.masks, rules, batch_size)


@explained()
def run_evaluate(config: EvaluateConfig) -> int:
    """`fastclip evaluate`: print the tables, and write a CSV and a JSON where asked for."""
    say: Callable[[str], None] = (lambda text: None) if config.json == STDOUT else print
    with usage_errors():
        require_alone()
        config.check()
        if config.saliency:
            require_pysodmetrics()
        task = _prepare(config, config.checkpoint)
        other = _other(config, task)
        for file in (config.csv, config.json):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
    for note in task.samples.notes:
        say(printable(note))
    content = _about(config, task)
    if config.threshold_search:
        content |= _search(config, task, say)
    rules = Rules(content["threshold"], config.surface_tolerance, config.saliency)
    measured = task.measure(rules, config.batch_size)
    content |= tables.as_json(measured)
    say(_headline(task, measured, rules))
    say(tables.scores_text(measured))
    if other is not None:
        if isinstance(other, Task):
            other = _in_order(other.measure(rules, config.batch_size), measured)
        names = [printable(file) for file in config.against]
        say(f"\nminus {' + '.join(names)}, on the same images (paired bootstrap)")
        say(tables.differences_text(measured, other))
        content["difference"] = tables.differences_json(measured, other, names)
    _write(config, measured, content)
    return 0


def _prepare(config: EvaluateConfig, files: tuple[Path, ...]) -> Task:
    """Load checkpoints and the images that they are asked about."""
    ensemble, trained = load_ensemble(
        files, config.model, config.size, config.tta, config.tta_scales
    )
    if len(ensemble.sizes) > 1:
        sizes = " and ".join(f"{height}x{width}" for height, width in ensemble.sizes)
        raise ValueError(f"--checkpoint names networks trained at {sizes}: give one --size for all")
    config = _as_trained(config, trained[0])
    samples = load_samples(
        config,
        config.split,
        ensemble.sizes[0],
        seed=trained[0].seed,
        val_fraction=trained[0].val_fraction,
        synthetic_images=trained[0].synthetic_images,
    )
    if samples.masks.shape[1] != ensemble.classes:
        raise ValueError(
            f"{printable(files[0])} predicts {ensemble.classes} map(s), and the masks are read "
            f"into {samples.masks.shape[1]}: give --classes as in training"
        )
    if config.split == "val":
        require_held_out(config, samples, dict(zip(files, trained, strict=True)))
    groups = independent(samples, config.group_by)
    return Task(ensemble.to(torch_device(config.device)), samples, config.mask_options(), groups)


def _as_trained(config: EvaluateConfig, trained: TrainConfig) -> EvaluateConfig:
    """What is read as in training: the meaning of masks where no flag gives it, and the split."""
    if not any(getattr(config, flag) != getattr(EvaluateConfig, flag) for flag in MASK_FLAGS):
        config = replace(config, **{flag: getattr(trained, flag) for flag in MASK_FLAGS})
        config.check()
    if config.intensity == EvaluateConfig.intensity:
        config = replace(config, intensity=trained.intensity)
    if (config.fold, config.group_by) == (None, None):
        config = replace(config, fold=trained.fold, group_by=trained.group_by)
    return config


def _other(config: EvaluateConfig, task: Task) -> Task | Measured | None:
    """What --against names: scores of the same images, or networks that will be measured."""
    if not config.against:
        return None
    samples = task.samples
    if len(config.against) == 1 and config.against[0].suffix.lower() == ".csv":
        return read_scores(config.against[0], samples.names, samples.sets, task.groups)
    other = _prepare(config, config.against)
    if set(other.samples.names) != set(samples.names):
        only = sorted(set(samples.names) ^ set(other.samples.names))
        raise ValueError(
            f"--against {printable(config.against[0])} is measured on other images than "
            f"{printable(config.checkpoint[0])} ({len(only)} of them, {printable(only[0])} for "
            "one): compare on a --split that both have in common, such as test"
        )
    return other


def _in_order(other: Measured, ours: Measured) -> Measured:
    """The same images in the order of ours, with our sets and groups."""
    rows = {name: row for row, name in enumerate(other.names)}
    return replace(
        other.subset([rows[name] for name in ours.names]), sets=ours.sets, groups=ours.groups
    )


def _search(config: EvaluateConfig, task: Task, say: Callable[[str], None]) -> dict[str, Any]:
    threshold, dice = search_threshold(task.ensemble, task.samples, task.masks, config.batch_size)
    say(
        f"threshold {threshold:.2f}: of 0.01 to 0.99 it has the highest mean Dice on these "
        f"{len(task.samples)} images, {dice:.4f} at their own sizes. The choice flatters the "
        f"figures below; --split test --threshold {threshold:.2f} tests it"
    )
    return {"threshold": threshold, "threshold_searched": True}


def _headline(task: Task, measured: Measured, rules: Rules) -> str:
    count, independent_ones = len(measured), len(set(measured.groups))
    networks = len(task.ensemble.members)
    views = networks * len(task.ensemble.scales) * len(task.ensemble.flips)
    mean = f", mean of {networks} network(s) in {views} views" if views > 1 else ""
    over = "images" if independent_ones == count else f"{independent_ones} groups of images"
    if independent_ones < FEW:
        over += f" (fewer than {FEW}: too narrow)"
    return (
        f"{task.samples.source}, {count} images at {tables.size_text(measured)}: loss "
        f"{measured.loss:.4f}, threshold {rules.threshold:.2f}{mean}\n"
        f"95 % intervals by bootstrap over {over}; surface Dice within {rules.tolerance_px:g} px\n"
    )


def _about(config: EvaluateConfig, task: Task) -> dict[str, Any]:
    """What the figures are of."""
    return {
        "fastclip": fastclip.__version__,
        "checkpoints": [printable(file) for file in config.checkpoint],
        "data": task.samples.source,
        "split": config.split,
        "tta": config.tta,
        **({"tta_scales": list(task.ensemble.scales)} if "scales" in config.tta else {}),
        "threshold": config.threshold,
        "threshold_searched": False,
        "surface_tolerance_px": config.surface_tolerance,
    }


def _write(config: EvaluateConfig, measured: Measured, content: dict[str, Any]) -> None:
    if config.csv is not None:
        # Every digit: a comparison with this file later must find equal scores equal.
        rows = tables.image_rows(measured)
        write_csv(
            config.csv,
            [{k: repr(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
        )
    if config.json is None:
        return
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if config.json == STDOUT:
        print(text, end="")
    else:
        write_file(config.json, lambda stream: stream.write(text.encode()))
