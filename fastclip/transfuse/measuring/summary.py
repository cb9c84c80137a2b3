"""Scores of images into means with intervals, and into differences of two runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastclip.transfuse.data.samples import Size
from fastclip.transfuse.measuring.bootstrap import (
    Difference,
    Finish,
    Interval,
    intervals,
    paired_differences,
)
from fastclip.transfuse.measuring.image import CURVE
from fastclip.transfuse.measuring.metrics import METRICS

Table = dict[str, np.ndarray]  # metric: float64 [N, C]; of CURVE [N, C, 256]
SIZES = ("own_size", "network_size")  # of the maps that are compared with masks


@dataclass(frozen=True)
class Measured:
    """Scores of a set of images.

    Args:
        names: N, of the images.
        sets: N names of data sets, or none.
        groups: N labels of what is independent of each other.
        tables: scores by the names in `SIZES`.
        size: H and W that the network worked at; None where it is not known.
        loss: structure loss at the network's size; None where it is not known.
    """

    names: list[str]
    sets: list[str]
    groups: list[str]
    tables: dict[str, Table]
    size: Size | None
    loss: float | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: list[int]) -> Measured:
        """The given images, in their order; of no set and no loss."""
        tables = {
            size: {name: values[rows] for name, values in table.items()}
            for size, table in self.tables.items()
        }
        names, groups = ([part[row] for row in rows] for part in (self.names, self.groups))
        return replace(self, names=names, groups=groups, sets=[], tables=tables, loss=None)

    def by_set(self) -> dict[str, Measured]:
        """Each data set, where there are several."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.sets):
            rows.setdefault(name, []).append(row)
        return {name: self.subset(part) for name, part in rows.items()}


def per_image(table: Table) -> Table:
    """Means over classes, [N] each; of the curve its mean as well."""
    found = {name: values.mean(1) for name, values in table.items() if name != CURVE}
    if CURVE in table:
        found["e_measure_mean"] = table[CURVE].mean((1, 2))
    return found


def summarise(table: Table, groups: Sequence[Hashable]) -> dict[str, Interval]:
    """The mean over images of each metric, with its interval."""
    names, matrix = _matrix(table)
    found = dict(zip(names, intervals(matrix, groups, _finish(table)), strict=True))
    return {name: found[name] for name in METRICS if name in found}


def compare(ours: Table, others: Table, groups: Sequence[Hashable]) -> dict[str, Difference]:
    """Ours minus others on the same images, of the metrics that both have."""
    if (CURVE in ours) != (CURVE in others):  # a file keeps the mean of the curve only
        ours, others = (
            {name: values[:, None] for name, values in per_image(table).items()}
            for table in (ours, others)
        )
    both = [name for name in ours if name in others]
    one, two = ({name: table[name] for name in both} for table in (ours, others))
    names, matrix = _matrix(one)
    found = paired_differences(matrix, _matrix(two)[1], groups, _finish(one))
    by_name = dict(zip(names, found, strict=True))
    return {name: by_name[name] for name in METRICS if name in by_name}


def _matrix(table: Table) -> tuple[list[str], np.ndarray]:
    """Names of the statistics, and what they are made of: a column each, then the curve's 256."""
    images = per_image(table)
    columns = [values[:, None] for values in images.values()]
    if CURVE not in table:
        return list(images), np.hstack(columns)
    return [*images, "e_measure_max"], np.hstack([*columns, table[CURVE].mean(1)])


def _finish(table: Table) -> Finish:
    count = len(per_image(table))

    def finish(means: np.ndarray) -> np.ndarray:
        # The highest point of the mean curve, as papers give it: not a mean over images.
        tops = [means[:, count:].max(1, keepdims=True)] if CURVE in table else []
        return np.hstack([means[:, :count], *tops])

    return finish
