"""An ensemble measured on samples: at the network's size and at each image's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import fastclip
from fastclip.transfuse.data.decoder import in_threads
from fastclip.transfuse.data.masks import read_mask
from fastclip.transfuse.data.options import MaskOptions
from fastclip.transfuse.data.samples import DataError, Samples, printable
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.measuring.image import Rules, image_scores, own_truth
from fastclip.transfuse.measuring.summary import Measured, Table
from fastclip.transfuse.measuring.thresholds import best_threshold, dice_by_threshold
from fastclip.transfuse.prediction.ensemble import NO_PREDICTION, Ensemble, mean_probability

T = TypeVar("T")
Scores = dict[str, np.ndarray]
SHOWN = 5  # names that an error lists


class Row(NamedTuple):
    """Of one image: its map at the network's size, and its scores at both sizes."""

    map: Tensor  # [C, H, W]
    network: Scores
    own: Scores


def measure(
    ensemble: Ensemble,
    samples: Samples,
    groups: list[str],
    masks: MaskOptions,
    rules: Rules,
    batch_size: int = 8,
) -> Measured:
    """Score every image twice: its map at the samples' size, and enlarged to the image's own.

    Args:
        ensemble: whose networks see images at the samples' size.
        samples: masks at the images' own sizes are read from `samples.items`; where there are
            none, the samples' size is the images' own.
        groups: N labels of what is independent of each other.
        masks: how those masks are read.
        rules: of the scores.
        batch_size: images at a time.

    Raises:
        RunError: a network gives NaN or infinity, or a mask cannot be read any more.
    """
    network: list[Scores] = []
    own: list[Scores] = []
    loss = 0.0
    for rows, views in _predictions(ensemble, samples, batch_size):

        def score(index: int, rows: range = rows, views: list[Tensor] = views) -> Row:
            return _score_row(samples, rows[index], [v[index] for v in views], masks, rules)

        done = _in_threads(score, len(rows))
        network += [row.network for row in done]
        own += [row.own for row in done]
        loss += _loss(torch.stack([row.map for row in done]), views, samples, rows) * len(rows)
    tables = {"own_size": _table(own), "network_size": _table(network)}
    height, width = samples.masks.shape[-2:]
    mean_loss = loss / len(samples)
    return Measured(samples.names, samples.sets, groups, tables, (height, width), mean_loss)


def _score_row(
    samples: Samples, row: int, logits: list[Tensor], masks: MaskOptions, rules: Rules
) -> Row:
    """Scores of one image, from its logits [C, h, w] in each view."""
    truth, valid = _network_truth(samples, row)
    probability = mean_probability(logits, truth.shape[-2:])
    network = image_scores(probability, truth, valid, rules)
    if not samples.items:
        return Row(probability, network, network)
    truth, valid = _own_truth(samples, row, masks)
    own = image_scores(mean_probability(logits, truth.shape[-2:]), truth, valid, rules)
    return Row(probability, network, own)


def search_threshold(
    ensemble: Ensemble, samples: Samples, masks: MaskOptions, batch_size: int = 8
) -> tuple[float, float]:
    """The threshold of the highest mean Dice at the images' own sizes, and that Dice."""
    curves: list[np.ndarray] = []
    for rows, views in _predictions(ensemble, samples, batch_size):

        def score(index: int, rows: range = rows, views: list[Tensor] = views) -> list[np.ndarray]:
            return _dice_row(samples, rows[index], [v[index] for v in views], masks)

        curves += [curve for image in _in_threads(score, len(rows)) for curve in image]
    return best_threshold(np.array(curves))


def _dice_row(
    samples: Samples, row: int, logits: list[Tensor], masks: MaskOptions
) -> list[np.ndarray]:
    """Dice of one image and each class at every threshold, at the image's own size."""
    truth, valid = (
        _own_truth(samples, row, masks) if samples.items else _network_truth(samples, row)
    )
    counted = None if valid is None else valid[0].numpy()
    maps = mean_probability(logits, truth.shape[-2:]).numpy()
    pairs = zip(maps, truth.numpy() >= 128, strict=True)
    return [dice_by_threshold(values, mask, counted) for values, mask in pairs]


def _in_threads(work: Callable[[int], T], count: int) -> list[T]:
    """What `work` returns for each index, on all cores."""
    found: dict[int, T] = {}

    def keep(index: int) -> None:
        found[index] = work(index)

    in_threads(keep, count)
    return [found[index] for index in range(count)]


def _predictions(
    ensemble: Ensemble, samples: Samples, batch_size: int
) -> Iterator[tuple[range, list[Tensor]]]:
    """Rows of a batch, and their logits [B, C, h, w] in each view, on the CPU; finite ones."""
    with tqdm(total=len(samples), unit="image", disable=not sys.stderr.isatty()) as bar:
        for first in range(0, len(samples), batch_size):
            rows = range(first, min(first + batch_size, len(samples)))
            images = samples.images[first : rows.stop]
            views = [view.cpu() for view in ensemble.logits(dict.fromkeys(ensemble.sizes, images))]
            finite = torch.stack([view.flatten(1).isfinite().all(1) for view in views]).all(0)
            if not finite.all():
                bad = [
                    samples.names[row] for row, fine in zip(rows, finite, strict=True) if not fine
                ]
                names = ", ".join(map(printable, bad[:SHOWN])) + (", ..." if bad[SHOWN:] else "")
                raise RunError(f"{names}: {NO_PREDICTION}")
            yield rows, views
            bar.update(len(rows))


def _network_truth(samples: Samples, row: int) -> tuple[Tensor, Tensor | None]:
    valid = None if samples.ignored is None else samples.ignored[row] == 0
    return samples.masks[row], valid


def _own_truth(samples: Samples, row: int, masks: MaskOptions) -> tuple[Tensor, Tensor | None]:
    item = samples.items[row]
    try:
        found = read_mask(item.masks, masks, item.per_class)
    except DataError as error:
        raise RunError(f"{error} (it could be read before)") from error
    return own_truth(found.maps, found.ignored)


def _loss(maps: Tensor, views: list[Tensor], samples: Samples, rows: range) -> float:
    """The structure loss of the mean probability [B, C, H, W]; of one view, of its logits."""
    part = slice(rows.start, rows.stop)
    valid = None if samples.ignored is None else samples.ignored[part] == 0
    alone = len(views) == 1 and views[0].shape == maps.shape
    given = views[0] if alone else maps.logit(eps=1e-6)
    return float(fastclip.structure_loss(given, samples.masks[part].float() / 255, valid=valid))


def _table(scores: list[Scores]) -> Table:
    return {name: np.stack([row[name] for row in scores]) for name in scores[0]}
