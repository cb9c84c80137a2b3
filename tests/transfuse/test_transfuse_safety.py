"""What resuming compares, what overwriting removes, and the lock of a folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
from PIL import Image
from short_run import names, pairs, short
from tiny import one_thread  # noqa: F401

from fastclip.transfuse.errors import RunError, UsageError
from fastclip.transfuse.safety import run_files
from fastclip.transfuse.storage.checkpoint import CheckpointError
from fastclip.transfuse.training.trainer import Trainer, run_train

pytestmark = pytest.mark.slow  # it trains


@pytest.mark.slow
def test_overwrite_removes_what_the_earlier_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = short(tmp_path, epochs=2, tensorboard=True, save_every="1", keep=3)
    assert Trainer(first).fit() == 0
    mine = ["notes.txt", "step-one.pt", "my.last.pt", "sub/last.pt", "weights.pt.1-aaaaaaaa.part"]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "wandb" / "offline-run-1-abc").mkdir(parents=True)
    (tmp_path / "wandb" / "offline-run-1-abc" / "data").write_text("of the run")
    (tmp_path / "wandb" / "offline-run-2-mine").mkdir()
    (tmp_path / "wandb-id.txt").write_text("abc")
    (tmp_path / ".best.pt.123-0123abcd.part").write_text("left by a killed process")
    left = set(run_files.written_files(tmp_path))
    left |= {file for folder in left for file in folder.rglob("*")}
    others = {file for file in tmp_path.rglob("*") if file.is_file()} - left
    assert {str(file.relative_to(tmp_path)) for file in others} == set(mine)
    assert (tmp_path / "cases").is_dir()
    events = {name for name in names(tmp_path) if "tfevents" in name}
    assert len(events) == 1
    changed = replace(first, epochs=1, keep=0, overwrite=True, seed=1, report=False)
    assert Trainer(changed).fit() == 0
    assert not (tmp_path / "cases").exists()
    assert names(tmp_path / "wandb") == {"offline-run-2-mine"}
    assert not (tmp_path / "report.html").exists()
    new = {name for name in names(tmp_path) if "tfevents" in name}
    assert len(new) == 1
    assert new != events
    assert not [f for f in names(tmp_path) if run_files.KEPT.fullmatch(f) or f.endswith("d.part")]
    assert all((tmp_path / name).read_text() == "mine" for name in mine)


def test_overwrite_in_a_folder_of_no_run_removes_nothing(tmp_path: Path) -> None:
    mine = ["config.yaml", "events.out.tfevents.1.host", "trace.json"]
    for name in mine[1:]:
        (tmp_path / name).write_text("mine")
    assert Trainer(short(tmp_path, max_steps=1, overwrite=True)).fit() == 0
    assert all((tmp_path / name).read_text() == "mine" for name in mine[1:])


def test_a_wrong_flag_beside_overwrite_removes_nothing(out: Path) -> None:
    before = names(out)
    wrong = short(out, overwrite=True, resnet_weights=out / "absent.pt")
    with pytest.raises(UsageError, match=r"absent\.pt"):
        run_train(wrong)
    assert names(out) == before


def test_data_are_compared_by_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = pairs(tmp_path / "set"), tmp_path / "run"
    Trainer(short(out, data=str(data), max_steps=1)).fit()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "moved")
    for same in ("set", "moved", ("set",), str(tmp_path / "link")):
        if same == str(tmp_path / "link"):
            (tmp_path / "link").symlink_to(data)
        Trainer(short(out, data=same, resume=True)).lock.release()  # type: ignore[arg-type]

    sides = (out / "split.csv").read_text()
    trained = next(f"case{row}" for row in range(6) if f"case{row},train" in sides)
    mask = tmp_path / "moved" / "masks" / f"{trained}.png"
    pixels = np.array(Image.open(mask))
    pixels[0, 0] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(mask)
    with pytest.raises(CheckpointError, match=rf"other train images .*1 of \d differ: {trained}"):
        Trainer(short(out, data="moved", resume=True))
    with pytest.raises(ValueError, match=r"other train images or masks .names differ"):
        Trainer(short(out, resume=True))
    (tmp_path / "moved" / "masks" / f"{trained}.png").unlink()
    (tmp_path / "moved" / "images" / f"{trained}.png").unlink()
    with pytest.raises(ValueError, match=f"not in the data any more: {trained}"):
        Trainer(short(out, data="moved", resume=True))


@pytest.mark.parametrize(
    ("schedule", "change", "said"),
    [
        ("cosine", {"max_steps": 3}, True),
        ("linear", {"epochs": 4}, True),
        ("linear", {"max_time": 60.0}, True),
        ("cosine", {}, False),
        ("constant", {"max_steps": 3}, False),
    ],
)
def test_a_changed_budget_under_a_decay_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: Any, change: Any, said: bool
) -> None:
    first = short(tmp_path, max_steps=2, schedule=schedule)
    first = replace(first, max_steps=None) if "epochs" in change else first
    Trainer(first).fit()
    capsys.readouterr()
    trainer = Trainer(replace(first, **change, resume=True))
    out = capsys.readouterr().out
    assert ("the budget was" in out) == said
    if said:
        assert f"under --schedule {schedule}" in out
        assert f"{trainer._set_lr():.2e}, where it was" in out or "max_time" in change


def test_a_lock_that_is_lost_stops_the_writing(out: Path) -> None:
    before = (out / "last.pt").read_bytes()
    trainer = Trainer(short(out, resume=True))
    (out / ".lock").unlink()
    with pytest.raises(RunError, match="was removed, or another process has taken the folder"):
        trainer.fit()
    assert (out / "last.pt").read_bytes() == before


def test_the_second_run_in_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    first = Trainer(short(tmp_path))
    for change in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match=r"is in use by process \d+"):
            run_train(short(tmp_path, **change))
    assert first.fit() == 0
