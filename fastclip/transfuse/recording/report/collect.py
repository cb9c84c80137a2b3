"""What the folder of a run tells: read from its files alone, so that a report can be made again."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastclip
from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.recording.progress import duration
from fastclip.transfuse.recording.report import charts
from fastclip.transfuse.recording.report.charts import Chart
from fastclip.transfuse.recording.report.citations import citations
from fastclip.transfuse.recording.report.render import CasePicture, Report, table

Row = dict[str, str]
KINDS = {"worst": "Worst", "median": "In the middle", "best": "Best"}
PART = "grad_norm/"  # before the name of a part of the network, in norms.csv
NO_SCORES = ("epoch", "step", "seconds", "data")
LOSSES = {"loss_2": "map_2", "loss_1": "map_1", "loss_x": "map_x"}
MISSING = (
    "This run was stopped before its end: per-image scores and pictures are made there, from "
    "best.pt."
)


def read_report(folder: Path) -> Report:
    """Everything that the page shows, of a run that has validated once at least.

    Args:
        folder: the run's --out: metrics.csv, and of steps.csv, norms.csv, images.csv, cases/,
            config.yaml and report.json what there is.

    Raises:
        ValueError: it holds no metrics.csv; a file is damaged.
    """
    metrics = read_rows(folder / "metrics.csv")
    if not metrics:
        raise ValueError(
            f"{printable(folder)} holds no metrics.csv with a validation: give the --out of a run"
        )
    steps, norms, images = (
        read_rows(folder / f"{name}.csv") for name in ("steps", "norms", "images")
    )
    about = _read_json(folder / "report.json")
    configuration, provenance = read_config(folder / "config.yaml")
    environment = {**provenance, **about.get("environment", {})}
    report = Report(
        title=f"{configuration.get('model', 'TransFuse')}: {metrics[-1].get('data', '')}",
        about=" · ".join(map(str, about.get("about", []))),
        tiles=tiles(metrics, about),
        curves=curves(steps, metrics),
        wide_curves=layer_norms(norms),
        configuration=_pairs(configuration),
        environment=_pairs(environment),
        citations=citations(str(environment.get("fastclip", fastclip.__version__))),
        missing="" if images else MISSING,
    )
    if images:
        report.histogram = charts.histogram("Dice", _column(images, "dice"))
        report.columns, report.rows = table(images)
        report.cases = cases(folder / "cases", images)
    return report


def read_rows(file: Path) -> list[Row]:
    """Rows of a CSV file; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors="backslashreplace") as stream:
        try:
            return [
                {k: v or "" for k, v in row.items() if isinstance(k, str)}
                for row in csv.DictReader(stream)
            ]
        except csv.Error as error:
            raise ValueError(f"{printable(file)} is damaged: {error}") from error


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flags of a run's config.yaml, and what it tells of how the run came about."""
    import yaml

    if not file.is_file():
        return {}, {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{printable(file)} is damaged: {printable(str(error))}") from error
    flags = _as_dict(content, file)
    return flags, _as_dict(flags.pop("provenance", {}), file)


def tiles(metrics: Sequence[Row], about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run came to, in a few numbers: those of the checkpoint that it kept as best."""
    step = str(about.get("best_step", ""))
    best = next((row for row in metrics if row.get("step") == step), None)
    if best is None:
        best = max(metrics, key=lambda row: _or_lowest(_number(row.get("dice", ""))))
    found = [(k, f"{_number(v):.4g}") for k, v in best.items() if k not in NO_SCORES and v]
    found.append(("of step", best.get("step", "")))
    last = metrics[-1]
    found.append(("steps", last.get("step", "")))
    if math.isfinite(seconds := _number(last.get("seconds", ""))):
        found.append(("time", duration(seconds)))
    return found


def curves(steps: Sequence[Row], metrics: Sequence[Row]) -> list[Chart]:
    """Losses, scores, gradient norm and learning rate."""
    at, seen = _column(steps, "step"), _column(metrics, "step")
    losses = {label: (at, _column(steps, key)) for key, label in LOSSES.items()}
    losses["validation"] = (seen, _column(metrics, "val_loss"))
    names = [n for n in metrics[0] if n not in NO_SCORES and "loss" not in n]
    scores = {name: (seen, _column(metrics, name)) for name in names}
    within = {
        name: xy
        for name, xy in scores.items()
        if all(0 <= v <= 1 for v in xy[1] if not math.isnan(v))
    }
    norm = {"gradient norm": (at, _column(steps, "grad_norm"))}
    rate = {"learning rate": (at, _column(steps, "lr"))}
    made = [
        charts.lines("Structure loss", losses),
        charts.lines("Scores on the validation images", within, ylim=(0, 1)),
        charts.lines("Gradient norm before clipping", norm, log=True),
        charts.lines("Learning rate", rate),
    ]
    return [chart for chart in made if chart is not None]


def layer_norms(norms: Sequence[Row]) -> list[Chart]:
    """The gradient norm of each part of the network over the steps."""
    parts = [name for name in (norms[0] if norms else {}) if name.startswith(PART)]
    if not parts:
        return []
    rows = {name.removeprefix(PART): _column(norms, name) for name in parts}
    return [charts.heat_map("Gradient norm of each part", _column(norms, "step"), rows)]


def cases(folder: Path, images: Sequence[Row]) -> list[tuple[str, list[CasePicture]]]:
    """The chosen images: those with an entry such as worst-1 in the column `case`."""
    found = []
    for kind, heading in KINDS.items():
        chosen = {
            number: row
            for row in images
            if (number := row.get("case", "").removeprefix(f"{kind}-")).isdecimal()
        }
        pictures = [
            CasePicture(
                row.get("image", ""),
                f"{_number(row.get('dice', '')):.4f}",
                charts.data_uri(file.read_bytes(), "image/png"),
            )
            for number, row in sorted(chosen.items(), key=lambda item: int(item[0]))
            if (file := folder / f"{kind}-{int(number)}.png").is_file()
        ]
        if pictures:
            found.append((heading, pictures))
    return found


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{printable(file)} is damaged: {error}") from error
    return _as_dict(content, file)


def _as_dict(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{printable(file)} is damaged: it holds a {type(content).__name__}")
    return content


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), "" if value is None else str(value)) for name, value in values.items()]


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [_number(row.get(name, "")) for row in rows]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value
