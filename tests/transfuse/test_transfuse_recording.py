"""What a run shows and keeps: norms, loggers, time left, and the report at its end."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from tiny import one_thread, tiny  # noqa: F401

from fastclip.transfuse.config.recording import RecordingConfig, ReportConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.errors import UsageError
from fastclip.transfuse.recording import pictures
from fastclip.transfuse.recording.loggers import Loggers, open_loggers
from fastclip.transfuse.recording.progress import Eta, duration, memory_mib, memory_text
from fastclip.transfuse.recording.record import aligned
from fastclip.transfuse.recording.report.write import run_report
from fastclip.transfuse.storage.checkpoint import load_checkpoint
from fastclip.transfuse.training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains


def recorded(out: Path, **changes: Any) -> TrainConfig:
    """Six steps, with the norms of every second one."""
    return tiny(out, **{"max_steps": 6, "norms_every": 2, "report": False} | changes)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


class Kept:
    """A logger that keeps what it gets, and fails from its `last`-th call on."""

    def __init__(self, last: float = math.inf) -> None:
        self.got: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[str, tuple[int, ...]]] = []
        self.last, self.closed = last, False

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.last -= 1
        if self.last < 0:
            raise OSError("no space left")
        self.got.append((step, dict(values)))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.images.append((name, pixels.shape))

    def close(self) -> None:
        self.closed = True


def test_a_logger_that_fails_is_named_once_and_the_others_go_on() -> None:
    said: list[str] = []
    good, bad = Kept(), Kept(last=1)
    loggers = Loggers({"good": good, "bad": bad}, said.append)
    for step in range(4):
        loggers.scalars({"loss": 0.5 * step}, step)
    loggers.close()
    assert [step for step, _ in good.got] == [0, 1, 2, 3]
    assert [step for step, _ in bad.got] == [0]
    assert said == ["bad failed and is left out from here on: no space left"]
    assert good.closed
    assert not loggers


def test_loggers_get_finite_numbers_only() -> None:
    kept = Kept()
    loggers = Loggers({"kept": kept}, print)
    loggers.scalars({"a": 1.0, "b": math.nan, "c": "text", "d": math.inf, "step": 3}, 3)
    loggers.scalars({"b": math.nan}, 4)
    assert kept.got == [(3, {"a": 1.0})]


def test_tensorboard_has_losses_rates_norms_of_layers_and_images(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert Trainer(recorded(tmp_path, tensorboard=True)).fit() == 0
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss_2", "train/lr", "train/memory_mib", "validation/dice"} <= {*tags["scalars"]}
    layers = [t for t in tags["scalars"] if t.startswith("norms/grad_norm/resnet.layer")]
    assert len(layers) == 3
    assert [event.step for event in events.Scalars(layers[0])] == [2, 4, 6]
    assert "validation/overlays" in tags["images"]
    assert [event.step for event in events.Images("validation/overlays")] == [4, 6]


def names_in(logged: list[dict[str, Any]]) -> set[str]:
    return {name for values in logged for name in values}


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[str, Any]]:
    """A module of that name, and the calls that it got."""
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(
        log=lambda values, **more: calls.append(("log", {**values, **more})),
        define_metric=lambda *args, **more: calls.append(("define_metric", more)),
        finish=lambda: calls.append(("finish", None)),
    )

    def init(**options: Any) -> Any:
        calls.append(("init", options))
        return run

    module = SimpleNamespace(init=init, Image=lambda pixels: pixels.shape)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_wandb_gets_all_of_it_and_a_resumed_run_is_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, "wandb")
    assert Trainer(recorded(tmp_path, wandb=True, project="polyps")).fit() == 0
    assert calls[-1] == ("finish", None)
    options = calls[0][1]
    assert (options["project"], options["name"]) == ("polyps", tmp_path.name)
    assert options["config"]["lr"] == 1e-3
    json.dumps(options["config"])
    logged = [values for kind, values in calls if kind == "log"]
    assert {"train/loss_2", "validation/dice", "norms/update_ratio"} <= names_in(logged)
    assert all("step" in values for values in logged)
    assert [v["step"] for v in logged if "validation/overlays" in v] == [4, 6]
    Trainer(recorded(tmp_path, wandb=True, resume=True)).lock.release()
    again = [options for kind, options in calls if kind == "init"][1]
    assert again["id"] == options["id"]
    Trainer(recorded(tmp_path, wandb=True, overwrite=True)).lock.release()
    other = [options for kind, options in calls if kind == "init"][2]
    assert other["id"] != options["id"]


def test_trackio_gets_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "trackio")
    assert Trainer(recorded(tmp_path, trackio=True)).fit() == 0
    assert calls[0][1]["resume"] == "never"
    logged = [values for kind, values in calls if kind == "log"]
    assert {"train/lr", "validation/iou", "norms/grad_norm"} <= names_in(logged)
    Trainer(recorded(tmp_path, trackio=True, resume=True)).lock.release()
    assert [o["resume"] for kind, o in calls if kind == "init"] == ["never", "allow"]


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert Trainer(recorded(tmp_path, wandb=True)).fit() == 0
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"train/loss_2" in content
    assert b"norms/grad_norm/resnet.layer1" in content


@pytest.mark.slow
def test_trackio_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    trackio = pytest.importorskip("trackio")
    if Path(trackio.utils.TRACKIO_DIR) != tmp_path / "kept":
        pytest.skip("trackio was imported before, and keeps its folder")
    out = tmp_path / "run"
    assert Trainer(recorded(out, trackio=True, project="polyps")).fit() == 0
    (file,) = (tmp_path / "kept").glob("polyps*.db")
    with sqlite3.connect(file) as database:
        text = str(database.execute("select metrics from metrics").fetchall())
    assert "train/loss_2" in text
    assert "norms/grad_norm/resnet.layer1" in text


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_logger_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"--{name} needs {name}: pip install {name}"):
        open_loggers(tmp_path, RecordingConfig(**{name: True}), False, print)


def test_a_logger_that_does_not_start_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "wandb")

    def init(**options: Any) -> Any:
        raise KeyError("no API key\nmore of it")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(ValueError, match=r"^--wandb does not start: 'no API key"):
        open_loggers(tmp_path, RecordingConfig(wandb=True), False, print)


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
