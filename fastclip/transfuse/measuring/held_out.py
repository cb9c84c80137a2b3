"""Which images are independent: of the training, and of each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastclip.transfuse.config.evaluation import EvaluateConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.load import names_of
from fastclip.transfuse.data.options import parse_fold
from fastclip.transfuse.data.samples import DataError, Samples, printable
from fastclip.transfuse.data.split import Partition, grouping

SHOWN = 5  # names that an error lists


def require_held_out(
    config: EvaluateConfig, samples: Samples, trained: Mapping[Path, TrainConfig]
) -> None:
    """Raise ValueError where a network was trained on images that pass for validation here.

    Args:
        config: as the samples were read; its fold may be another one than that of the training.
        samples: of val.
        trained: how each checkpoint was trained. A bare state dict does not say it and passes.
    """
    if not samples.items:
        return
    for file, training in trained.items():
        how = Partition(
            training.seed,
            training.val_fraction,
            parse_fold(training.fold),
            training.group_by,
            hold_out=True,
        )
        if not training.data:
            continue
        held_out = names_of(config.data, "val", how)
        seen = [name for name in samples.names if name not in held_out]
        if seen:
            raise ValueError(
                f"{printable(file)} held out other images: {len(seen)} of these {len(samples)} "
                f"were left to its training ({', '.join(seen[:SHOWN])}). Measure it on its own "
                "--fold, or all of them on --split test; --split all takes data that none was "
                "trained on"
            )


def independent(samples: Samples, group_by: str | None) -> list[str]:
    """A label for each image: what a split keeps together is drawn together.

    Slices of a volume are, and what `group_by` matches; where it does not match these names (those
    of a test set, for one), each image stands for itself.
    """
    if not samples.items:
        return list(samples.names)
    try:
        label = grouping(samples.items, group_by)
    except DataError:
        label = grouping(samples.items, None)
    return [f"{item.set}/{label(item)}" for item in samples.items]
