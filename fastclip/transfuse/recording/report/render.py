"""A report as HTML: every text escaped, every style, script and picture within the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fastclip.transfuse.recording.report.charts import Chart

HERE = Path(__file__).parent


class Column(NamedTuple):
    """Head of a table: its name, and whether it sorts as number or as text."""

    name: str
    kind: str


class Cell(NamedTuple):
    """What is shown, what it sorts by, and whether that is a number."""

    text: str
    value: str
    number: bool


class CasePicture(NamedTuple):
    """An image with its mask and its prediction."""

    name: str
    score: str
    uri: str


@dataclass
class Report:
    """What the page shows; plain text everywhere, and pictures as data URIs."""

    title: str
    about: str
    tiles: list[tuple[str, str]]
    curves: list[Chart] = field(default_factory=list)
    wide_curves: list[Chart] = field(default_factory=list)
    cases: list[tuple[str, list[CasePicture]]] = field(default_factory=list)
    histogram: Chart | None = None
    columns: list[Column] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)
    configuration: list[tuple[str, str]] = field(default_factory=list)
    environment: list[tuple[str, str]] = field(default_factory=list)
    citations: Sequence[tuple[str, str]] = ()
    missing: str = ""  # why there are no cases


def render(report: Report) -> str:
    """The whole page."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False
    )
    script = (HERE / "sort.js").read_text()
    return environment.get_template("template.html").render(
        report=report,
        policy=content_security_policy(script),
        script=Markup(script),
        style=Markup((HERE / "style.css").read_text()),
    )


def content_security_policy(script: str) -> str:
    """Nothing is fetched from anywhere, and no script runs but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def table(rows: Sequence[dict[str, str]]) -> tuple[list[Column], list[list[Cell]]]:
    """Columns and cells of CSV rows: a column is of numbers where every value is one or empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name: all(_is_number(row.get(name, "")) for row in rows) for name in names}
    columns = [Column(name, "number" if numeric[name] else "text") for name in names]
    cells = [[_cell(row.get(name, ""), numeric[name]) for name in names] for row in rows]
    return columns, cells


def _cell(text: str, number: bool) -> Cell:
    if not number:
        return Cell(text, text, False)
    return Cell(f"{float(text):.4g}" if text else "", text or "NaN", True)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
