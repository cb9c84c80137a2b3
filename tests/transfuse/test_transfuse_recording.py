"""What a run shows and keeps: norms, time left, and the report at its end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch
from short_run import recorded
from tiny import one_thread  # noqa: F401

from fastclip.transfuse.config.recording import RecordingConfig, ReportConfig
from fastclip.transfuse.errors import UsageError
from fastclip.transfuse.recording import pictures
from fastclip.transfuse.recording.progress import Eta, duration, memory_mib, memory_text
from fastclip.transfuse.recording.record import aligned
from fastclip.transfuse.recording.report.write import run_report
from fastclip.transfuse.storage.checkpoint import load_checkpoint
from fastclip.transfuse.training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_norms_of_layers_are_those_of_the_steps(tmp_path: Path) -> None:
    trainer = Trainer(recorded(tmp_path))
    seen: list[tuple[float, float]] = []
    inner = trainer.train_step

    def train_step(images: torch.Tensor, masks: torch.Tensor) -> Any:
        losses, norm = inner(images, masks)
        layer = [p.grad for n, p in trainer.model.named_parameters() if "resnet.layer1" in n]
        seen.append((float(norm), float(torch.nn.utils.get_total_norm(layer))))
        return losses, norm

    trainer.train_step = train_step  # type: ignore[method-assign]
    assert trainer.fit() == 0
    rows = rows_of(tmp_path / "norms.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert [float(row["grad_norm"]) for row in rows] == pytest.approx(
        [norm for norm, _ in seen[1::2]], rel=1e-4
    )
    clipped = [float(row["grad_norm/resnet.layer1"]) for row in rows]
    assert clipped == pytest.approx([layer for _, layer in seen[1::2]], rel=1e-4)


@pytest.mark.slow
def test_norms_of_a_resumed_run_equal_those_of_a_whole_one(tmp_path: Path) -> None:
    assert Trainer(recorded(tmp_path / "whole")).fit() == 0
    first = Trainer(recorded(tmp_path / "parts"))
    inner = first.train_step

    def train_step(images: torch.Tensor, masks: torch.Tensor) -> Any:
        first.stop.requested = first.step + 1 == 3
        return inner(images, masks)

    first.train_step = train_step  # type: ignore[method-assign]
    assert first.fit() == 130
    assert Trainer(recorded(tmp_path / "parts", resume=True)).fit() == 0
    assert (tmp_path / "parts/norms.csv").read_text() == (tmp_path / "whole/norms.csv").read_text()


def test_flags_leave_norms_and_report_out(tmp_path: Path) -> None:
    assert Trainer(recorded(tmp_path, norms_every=0)).fit() == 0
    assert not (tmp_path / "norms.csv").exists()
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="--norms-every must be 0 or more, got -1"):
        RecordingConfig(norms_every=-1).check()
    with pytest.raises(ValueError, match="--project must be a name"):
        RecordingConfig(project=" ").check()


@pytest.mark.slow
def test_overwrite_removes_what_a_report_was_made_of_and_nothing_else(tmp_path: Path) -> None:
    assert Trainer(recorded(tmp_path, report=True)).fit() == 0
    mine = [tmp_path / "mine.csv", tmp_path / "cases" / "mine.png"]
    for file in mine:
        file.write_bytes(b"")
    Trainer(recorded(tmp_path, overwrite=True)).lock.release()
    left = {f.name for f in tmp_path.rglob("*") if f.is_file()}
    assert {"mine.csv", "mine.png"} <= left
    gone = {"report.html", "report.json", "images.csv", "norms.csv", "worst-1.png", "best-1.png"}
    assert not gone & left


@pytest.mark.slow
def test_the_report_of_a_run_is_of_its_best_checkpoint_and_can_be_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Trainer(recorded(tmp_path, report=True)).fit() == 0
    page = (tmp_path / "report.html").read_bytes()
    best = load_checkpoint(tmp_path / "best.pt")
    dice = [float(row["dice"]) for row in rows_of(tmp_path / "images.csv")]
    assert sum(dice) / len(dice) == pytest.approx(best["dice"], abs=1e-4)
    assert json.loads((tmp_path / "report.json").read_text())["best_step"] == best["step"]
    (tmp_path / "report.html").unlink()
    assert run_report(ReportConfig(run=tmp_path)) == 0
    assert (tmp_path / "report.html").read_bytes() == page
    assert "needs no network" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--run must be the folder of a run"):
        run_report(ReportConfig(run=tmp_path / "none"))


def test_time_left() -> None:
    now = [50.0]
    clock = lambda: now[0]  # noqa: E731
    eta = Eta(100, 200, None, spent_s=clock, clock=clock)
    bounded = Eta(100, 200, 90.0, spent_s=clock, clock=clock)
    assert eta.seconds(100) is None
    assert bounded.seconds(100) == 40.0
    now[0] = 60.0
    assert eta.seconds(110) == 90.0  # a second a step, of this process
    assert bounded.seconds(110) == 30.0
    now[0] = 95.0
    assert bounded.seconds(110) == 0.0


def test_units_of_time_and_memory() -> None:
    assert [duration(s) for s in (0.4, 59.6, 185, 7385)] == [
        "0 s",
        "1:00 min",
        "3:05 min",
        "2:03:05 h",
    ]
    assert [memory_text(m) for m in (812.4, 3481.6)] == ["812 MiB", "3.4 GiB"]
    held = torch.ones(300, 2**18)  # 300 MiB
    most = memory_mib(held.device)
    assert most is None or 300 < most < 200_000


def test_progress_tells_memory_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Trainer(recorded(tmp_path)).fit() == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 1:")]
    assert line.endswith(" left")
    assert "iB  " in line


def test_rows_of_other_columns_fit_into_one_table() -> None:
    assert aligned([{"a": 1}, {"b": 2}]) == [{"a": 1, "b": ""}, {"a": "", "b": 2}]


def test_curves_take_any_name_of_data(tmp_path: Path) -> None:
    step = {"step": 1, "loss_2": 1.0, "loss_1": 1.0, "loss_x": 1.0, "grad_norm": 1.0}
    epoch = {"step": 1, "val_loss": 1.0, "dice": 0.5, "iou": 0.5, "accuracy": 0.5}
    pictures.write_curves(tmp_path / "c.png", [step], [epoch], r"a $\frac{1 folder_$ of mine")
    assert (tmp_path / "c.png").stat().st_size > 1000
