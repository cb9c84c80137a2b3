"""What `fastclip evaluate` shows and writes: a table, a row per image, and all of it as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastclip.transfuse.measuring.bootstrap import LEVEL, ROUNDS, Difference, Interval
from fastclip.transfuse.measuring.metrics import METRICS
from fastclip.transfuse.measuring.summary import SIZES, Measured, compare, per_image, summarise

GAP = "   "
Column = dict[str, Interval] | dict[str, Difference]  # by metric


def size_label(name: str, measured: Measured) -> str:
    """'own size', or 'network size 192x256'."""
    if name == "own_size" or measured.size is None:
        return name.replace("_", " ")
    return f"network size {size_text(measured)}"


def size_text(measured: Measured) -> str:
    """'192x256', or nothing where the size is not known."""
    return "" if measured.size is None else "{}x{}".format(*measured.size)


def scores_text(measured: Measured) -> str:
    """Means with intervals: the two sizes side by side; of several sets a block for each size."""
    parts = {"all": measured, **measured.by_set()}
    if len(parts) == 1:
        columns: dict[str, Column] = {
            size_label(size, measured): summarise(measured.tables[size], measured.groups)
            for size in SIZES
        }
        return format_table("", columns)
    blocks = []
    for size in SIZES:
        columns = {
            f"{name} ({len(part)})": summarise(part.tables[size], part.groups)
            for name, part in parts.items()
        }
        blocks.append(format_table(size_label(size, measured), columns))
    return "\n\n".join(blocks)


def differences_text(ours: Measured, others: Measured) -> str:
    """As `scores_text`, ours minus others; at the network's size only where it is the same."""
    sizes = [size for size in SIZES if size == "own_size" or ours.size == others.size]
    pairs = {"all": (ours, others)}
    theirs = others.by_set()
    pairs |= {name: (part, theirs[name]) for name, part in ours.by_set().items()}
    if len(pairs) == 1:
        return format_table("", {size_label(s, ours): differences(ours, others, s) for s in sizes})
    blocks = [
        format_table(
            size_label(size, ours),
            {
                f"{name} ({len(one)})": differences(one, two, size)
                for name, (one, two) in pairs.items()
            },
        )
        for size in sizes
    ]
    return "\n\n".join(blocks)


def differences(ours: Measured, others: Measured, size: str) -> dict[str, Difference]:
    """Ours minus others by metric, at one of `SIZES`."""
    return compare(ours.tables[size], others.tables[size], ours.groups)


def format_table(corner: str, columns: Mapping[str, Column]) -> str:
    """Metrics down, columns across; each cell as wide as its column needs."""
    names = [name for name in METRICS if any(name in column for column in columns.values())]
    rows = [[corner, *columns]]
    for name in names:
        cells = [_cell(name, column.get(name)) for column in columns.values()]
        rows.append([METRICS[name].label, *cells])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _cell(name: str, found: Interval | Difference | None) -> str:
    if found is None:
        return "-"
    digits, sign = METRICS[name].digits, "+" if isinstance(found, Difference) else ""
    text = f"{found.mean:{sign}.{digits}f}"
    if not math.isnan(found.low):
        text += f" [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"
    if isinstance(found, Difference) and not math.isnan(found.p_value):
        text += f" p={found.p_value:.3g}"
    return text


def image_rows(measured: Measured) -> list[dict[str, Any]]:
    """One row of means over classes per image, at both sizes; and the Dice of each class."""
    rows: list[dict[str, Any]] = [{"image": name} for name in measured.names]
    for index, row in enumerate(rows):
        if measured.sets:
            row["set"] = measured.sets[index]
        row["network_size"] = size_text(measured)
    for size in SIZES:
        table = measured.tables[size]
        columns = {f"{name}_{size}": values for name, values in per_image(table).items()}
        classes = table["dice"].shape[1] if "dice" in table else 1
        if classes > 1:
            columns |= {f"dice_class{k + 1}_{size}": table["dice"][:, k] for k in range(classes)}
        for name, values in columns.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = value
    return rows


def as_json(measured: Measured) -> dict[str, Any]:
    """Means, intervals and images, by size."""
    found: dict[str, Any] = {"images": len(measured), "independent": len(set(measured.groups))}
    found |= {size: _plain(summarise(measured.tables[size], measured.groups)) for size in SIZES}
    return {
        **({} if measured.size is None else {"network_input": list(measured.size)}),
        **({} if measured.loss is None else {"loss_network_size": measured.loss}),
        "interval": {"level": LEVEL, "method": "percentile bootstrap", "rounds": ROUNDS},
        "all": found,
        "sets": {
            name: {
                "images": len(part),
                **{size: _plain(summarise(part.tables[size], part.groups)) for size in SIZES},
            }
            for name, part in measured.by_set().items()
        },
        "per_image": image_rows(measured),
    }


def differences_json(ours: Measured, others: Measured, what: Sequence[str]) -> dict[str, Any]:
    """Ours minus others, by size, of all images and of each set."""
    sizes = [size for size in SIZES if size == "own_size" or ours.size == others.size]
    theirs = others.by_set()
    return {
        "against": list(what),
        "all": {size: _plain(differences(ours, others, size)) for size in sizes},
        "sets": {
            name: {size: _plain(differences(part, theirs[name], size)) for size in sizes}
            for name, part in ours.by_set().items()
        },
    }


def _plain(column: Column) -> dict[str, Any]:
    """For JSON, which has no NaN: null."""
    return {
        name: {k: None if math.isnan(v) else v for k, v in found._asdict().items()}
        for name, found in column.items()
    }
