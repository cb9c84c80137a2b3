"""report.html: made from a run's files, one file, nothing in it that data could have put there."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
import yaml
from browser import browser
from PIL import Image

from fastclip.transfuse.recording.report import charts
from fastclip.transfuse.recording.report.cases import choose
from fastclip.transfuse.recording.report.collect import read_report
from fastclip.transfuse.recording.report.render import render

EVIL = "<script>window.broken = 1</script>"
DICE = {"a": 0.5, EVIL: 0.91, "c$_{x": math.nan, "d": 0.0, "e": 0.75, "n" * 300: 0.6, "g10": 1.0}
CASES = {"worst-1": "c$_{x", "median-1": "n" * 300, "best-1": "g10"}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of 40 steps on images of difficult names."""
    out = tmp_path / "run"
    (out / "cases").mkdir(parents=True)
    steps = [
        {"step": s, "loss_2": 2 / s, "loss_1": 2.2 / s, "loss_x": 2.5 / s, "grad_norm": 9 / s}
        | {"lr": 1e-3, "images_per_s": 10.0}
        for s in (1, 20, 40)
    ]
    write_rows(out / "steps.csv", steps)
    metrics = [
        {"epoch": e, "step": 20 * e, "seconds": 4000.0 * e, "data": f"set {EVIL} $x_{{"}
        | {"val_loss": 1 / e, "dice": 0.7 - 0.1 * e, "iou": 0.5, "accuracy": 0.9}
        for e in (1, 2)
    ]
    write_rows(out / "metrics.csv", metrics)
    norms = [
        {"step": s, "grad_norm": 1.0, f"grad_norm/{EVIL}": 0.1, "grad_norm/_$x": 1e-9}
        for s in (20, 40)
    ]
    write_rows(out / "norms.csv", norms)
    case_of = {name: case for case, name in CASES.items()}
    rows = [{"image": n, "dice": d, "case": case_of.get(n, "")} for n, d in DICE.items()]
    write_rows(out / "images.csv", rows)
    for case in CASES:
        pixels = np.full((32, 120, 3), 90, np.uint8)
        Image.fromarray(pixels).save(out / "cases" / f"{case}.png")
    about = {"about": [EVIL], "best_step": 20, "environment": {"processor": EVIL}}
    (out / "report.json").write_text(json.dumps(about))
    config = {
        "model": "transfuse_t",
        "data": EVIL,
        "provenance": {"fastclip": "9.9", "commit": "abc"},
    }
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    return out


def page_of(run: Path) -> str:
    return render(read_report(run))


def test_the_report_holds_what_the_run_has(run: Path) -> None:
    page = page_of(run)
    assert page.count("data:image/png;base64,") == 3
    assert page.count("data:image/svg+xml;base64,") == 6  # four curves, norms, the histogram
    assert "6 images, median 0.6750; 1 without a score" in page
    assert "zhang2021transfuse" in page
    assert "version = {9.9}" in page
    assert "<td>abc</td>" in page
    assert "0.6</dd>" in page  # of the best step, not of the last
    assert "2:13:20 h" in page
    for heading in ("Worst", "In the middle", "Best"):
        assert f"<h3>{heading}</h3>" in page


def test_names_from_data_are_text(run: Path) -> None:
    page = page_of(run)
    assert page.count("<script") == 1  # our own
    assert EVIL not in page
    assert page.count("&lt;script&gt;window.broken = 1&lt;/script&gt;") >= 4


def test_nothing_is_fetched(run: Path) -> None:
    page = page_of(run)
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "default-src 'none'" in html.unescape(page)


def test_a_run_stopped_early_has_a_report_of_what_there_is(run: Path) -> None:
    for name in ("images.csv", "norms.csv", "report.json", "steps.csv", "config.yaml"):
        (run / name).unlink()
    page = page_of(run)
    assert "stopped before its end" in page
    assert page.count("data:image/svg+xml") == 2


def test_a_folder_without_a_run_is_refused_by_name(run: Path) -> None:
    (run / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"run holds no metrics\.csv"):
        read_report(run)


def test_a_damaged_file_is_named(run: Path) -> None:
    (run / "report.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"report\.json is damaged"):
        read_report(run)
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"report\.json is damaged"):
        read_report(run)
    (run / "report.json").unlink()
    with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
        read_report(run)
    (run / "config.yaml").unlink()
    (run / "report.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"report\.json is damaged: it holds a list"):
        read_report(run)


def test_a_case_is_never_read_from_outside_the_run(run: Path) -> None:
    (run.parent / "secret.png").write_bytes(b"secret")
    text = (run / "images.csv").read_text().replace("worst-1", "worst-1/../../../secret")
    (run / "images.csv").write_text(text)
    assert [heading for heading, _ in read_report(run).cases] == ["In the middle", "Best"]


def test_equal_runs_give_equal_reports(run: Path) -> None:
    assert page_of(run) == page_of(run)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5], ([], [0], [])),
        ([0.5, 0.1], ([1], [], [0])),
        ([0.5, 0.1, 0.9], ([1], [0], [2])),
        ([0.5, math.nan, 0.9, 0.0, 0.7, 0.6], ([1, 3], [0, 5], [2, 4])),
    ],
)
def test_chosen_cases(scores: list[float], expected: tuple[list[int], ...]) -> None:
    assert choose(scores) == expected


def test_many_images_give_four_of_each_kind() -> None:
    chosen = choose([row / 100 for row in range(101)])
    assert chosen.worst == [0, 1, 2, 3]
    assert chosen.best == [100, 99, 98, 97]
    assert chosen.median == [48, 49, 50, 51]


def test_charts_take_what_a_run_may_hold() -> None:
    nothing = [math.nan, math.nan]
    assert charts.lines("x", {"a": ([1, 2], nothing)}) is None
    assert charts.histogram("x", nothing) is None
    assert charts.lines("x", {"a": ([1, 2], [0.0, -1.0])}, log=True) is None
    chart = charts.lines("x", {"a": ([1, 2, 3], [0.5, 0.25, 0.0])}, log=True)
    assert chart is not None
    assert "at the end a 0.25" in chart.text
    assert "without a number" in charts.heat_map("x", [1], {"p": [0.0]}).text


def names(page: Any) -> list[str]:
    rows = "[...document.querySelectorAll('.sortable tbody tr')]"
    return page.run(f"{rows}.map(row => row.cells[0].textContent)")


@pytest.mark.slow
def test_the_report_in_a_browser(run: Path, tmp_path: Path) -> None:
    file = run / "report.html"
    file.write_text(page_of(run))
    with browser(tmp_path / "profile") as page:
        page.open(file)
        assert page.run("document.title") == f"transfuse_t: set {EVIL} $x_{{"
        page.click("th:nth-child(2) button")
        by_dice = ["d", "a", "n" * 300, "e", EVIL, "g10", "c$_{x"]
        assert names(page) == by_dice
        page.click("th:nth-child(2) button")
        assert names(page) == [*by_dice[-2::-1], "c$_{x"]  # what has no score stays last
        assert page.run("document.querySelector('th:nth-child(2)').ariaSort") == "descending"
        page.click("th:nth-child(1) button")
        assert names(page) == page.run(
            f"{json.dumps(names(page))}.sort((a, b) => a.localeCompare(b, 'en', {{numeric: true}}))"
        )
        for width in (1280, 360):
            page.resize(width)
            assert page.overflow_px() <= 0, f"wider than a window of {width} px"
        assert page.run("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.run("window.broken") is None
        assert page.errors == []
        outside = [url for url in page.requests if not url.startswith(("data:", "file:"))]
        assert outside == []
        assert [url for url in page.requests if url.startswith("file:")] == [file.as_uri()]


@pytest.mark.slow
def test_the_browser_sees_what_a_report_must_not_do(tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<div style='width: 3000px'>.</div><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('oh'); setTimeout(() => { throw Error('no') })</script>"
    )
    with browser(tmp_path / "profile") as page:
        page.open(file)
        page.run("new Promise(done => setTimeout(done, 50))")
        assert page.overflow_px() > 0
        assert len(page.errors) >= 2
        assert "http://127.0.0.1:9/x.png" in page.requests
