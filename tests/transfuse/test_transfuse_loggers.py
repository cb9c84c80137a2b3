"""TensorBoard, wandb and trackio: what they get, and one that fails or is not installed."""

from __future__ import annotations

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
from short_run import recorded
from tiny import one_thread  # noqa: F401

from fastclip.transfuse.config.recording import RecordingConfig
from fastclip.transfuse.recording.loggers import Loggers, open_loggers
from fastclip.transfuse.training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains


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
