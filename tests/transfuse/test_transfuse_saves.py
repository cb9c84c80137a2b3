"""When a run saves, what it keeps, and a last.pt that is damaged."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch
from short_run import names, short
from tiny import one_thread  # noqa: F401

from fastclip.transfuse.config.safety import Interval, SafetyConfig
from fastclip.transfuse.errors import UsageError
from fastclip.transfuse.storage.checkpoint import load_checkpoint, save_checkpoint
from fastclip.transfuse.training.state import content_of
from fastclip.transfuse.training.trainer import Trainer, run_train

pytestmark = pytest.mark.slow  # it trains


@pytest.mark.parametrize(
    ("text", "interval"),
    [("500", Interval(500)), ("10min", Interval(seconds=600)), ("1.5 h", Interval(seconds=5400))],
)
def test_an_interval_is_steps_or_a_time(text: str, interval: Interval) -> None:
    assert SafetyConfig(save_every=text).interval() == interval


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "10 parsecs", "min", "", "nan"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--save-every must be .* got"):
        SafetyConfig(save_every=text).check()


def test_saves_within_an_epoch_and_the_newest_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(short(tmp_path, epochs=2, save_every="2", keep=2))
    saved: list[int] = []
    inner = trainer.saver.save
    monkeypatch.setattr(trainer.saver, "save", lambda c: (saved.append(c["step"]), inner(c)))
    assert trainer.fit() == 0
    assert saved == [2, 3, 4, 6]  # every second step, and after each validation
    assert {int(f[5:13]) for f in names(tmp_path) if f.startswith("step-")} == {4, 6}
    assert load_checkpoint(tmp_path / "step-00000004.pt")["step"] == 4
    assert (tmp_path / "step-00000006.pt").samefile(tmp_path / "last.pt")  # no second copy


def test_saves_by_the_clock(tmp_path: Path) -> None:
    trainer = Trainer(short(tmp_path, save_every="10min"))
    assert not trainer.saver.due(7)
    trainer.saver.saved_at -= 601
    assert trainer.saver.due(7)
    trainer.saver.save(content_of(trainer))
    assert not trainer.saver.due(8)


def test_keep_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr("os.link", no_links)
    assert Trainer(short(tmp_path, max_steps=1, keep=1)).fit() == 0
    assert load_checkpoint(tmp_path / "step-00000001.pt")["step"] == 1


def test_a_damaged_last_pt_is_named_and_the_newest_whole_one_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(short(tmp_path, save_every="1", keep=3)).fit()
    for name in ("last.pt", "step-00000003.pt"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(b"PK\3\4 cut")
    trainer = Trainer(short(tmp_path, save_every="1", keep=3, resume=True))
    assert trainer.step == 2
    out = capsys.readouterr().out
    assert "last.pt is damaged" in out
    assert "goes on from step-00000002.pt, step 2" in out
    assert trainer.fit() == 0
    assert load_checkpoint(tmp_path / "step-00000003.pt")["step"] == 3


@pytest.mark.parametrize(
    "missing", ["step", "validated", "optimizer", "rng", "record", "best", "weights", "config"]
)
def test_a_last_pt_that_lacks_a_part_is_named(out: Path, missing: str) -> None:
    content = load_checkpoint(out / "last.pt")
    del content[missing]
    save_checkpoint(out / "last.pt", content)
    word = "optimizer" if missing == "optimizer" else missing
    with pytest.raises(UsageError, match=rf"last\.pt (lacks|holds no) .*{word}"):
        run_train(short(out, resume=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("record", {}), ("record", None), ("optimizer", {}), ("rng", torch.zeros(3))),
        *(("rng", "text"), ("data", {}), ("data", None), ("bad_steps", {}), ("seconds", None)),
        *(
            ("weights", {}),
            ("config", {"epochs": "many"}),
            ("step", None),
            ("best", {"value": "high"}),
        ),
    ],
)
def test_a_last_pt_with_a_wrong_part_is_named(out: Path, part: str, value: Any) -> None:
    content = load_checkpoint(out / "last.pt")
    save_checkpoint(out / "last.pt", {**content, part: value})
    with pytest.raises(UsageError, match=r"last\.pt") as caught:
        run_train(short(out, resume=True))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_best_pt_that_is_gone_is_said_and_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(short(tmp_path, epochs=2, max_steps=4)).fit()
    content = load_checkpoint(tmp_path / "last.pt")
    save_checkpoint(
        tmp_path / "last.pt", {**content, "best_step": 3, "best": {**content["best"], "value": 2.0}}
    )
    (tmp_path / "best.pt").unlink()
    trainer = Trainer(short(tmp_path, epochs=2, resume=True))
    assert "best.pt is gone" in capsys.readouterr().out
    trainer.fit()
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 6
