"""What a run keeps: saves within an epoch, bad steps, the earlier run, data of the first part."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from PIL import Image

from fastclip.transfuse.config.evaluation import EvaluateConfig
from fastclip.transfuse.config.prediction import PredictConfig
from fastclip.transfuse.config.safety import Interval, SafetyConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.errors import RunError, UsageError
from fastclip.transfuse.measuring.command import run_evaluate
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.prediction.predict import run_predict
from fastclip.transfuse.safety import run_files
from fastclip.transfuse.safety.failures import explained
from fastclip.transfuse.storage.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from fastclip.transfuse.training.state import content_of
from fastclip.transfuse.training.trainer import Trainer, run_train

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(out: Path, **changes: Any) -> TrainConfig:
    """Six images of 32x32 in batches of two: three steps an epoch."""
    config = TrainConfig(
        data="synthetic",
        model="transfuse_t",
        size="32x32",
        out=out,
        epochs=1,
        batch_size=2,
        synthetic_images=6,
        device="cpu",
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step."""
    folder = tmp_path_factory.mktemp("run")
    assert Trainer(tiny(folder, max_steps=1)).fit() == 0
    return folder


@pytest.fixture
def out(one_step: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(one_step, tmp_path / "run"))


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


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
    trainer = Trainer(tiny(tmp_path, epochs=2, save_every="2", keep=2))
    saved: list[int] = []
    inner = trainer.saver.save
    monkeypatch.setattr(trainer.saver, "save", lambda c: (saved.append(c["step"]), inner(c)))
    assert trainer.fit() == 0
    assert saved == [2, 3, 4, 6]  # every second step, and after each validation
    assert {int(f[5:13]) for f in names(tmp_path) if f.startswith("step-")} == {4, 6}
    assert load_checkpoint(tmp_path / "step-00000004.pt")["step"] == 4
    assert (tmp_path / "step-00000006.pt").samefile(tmp_path / "last.pt")  # no second copy


def test_saves_by_the_clock(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, save_every="10min"))
    assert not trainer.saver.due(7)
    trainer.saver.saved_at -= 601
    assert trainer.saver.due(7)
    trainer.saver.save(content_of(trainer))
    assert not trainer.saver.due(8)


def test_keep_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr("os.link", no_links)
    assert Trainer(tiny(tmp_path, max_steps=1, keep=1)).fit() == 0
    assert load_checkpoint(tmp_path / "step-00000001.pt")["step"] == 1


def test_a_damaged_last_pt_is_named_and_the_newest_whole_one_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(tiny(tmp_path, save_every="1", keep=3)).fit()
    for name in ("last.pt", "step-00000003.pt"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(b"PK\3\4 cut")
    trainer = Trainer(tiny(tmp_path, save_every="1", keep=3, resume=True))
    assert trainer.step == 2
    out = capsys.readouterr().out
    assert "last.pt is damaged" in out
    assert "goes on from step-00000002.pt, step 2" in out
    assert trainer.fit() == 0
    assert load_checkpoint(tmp_path / "step-00000003.pt")["step"] == 3


def spoil(trainer: Trainer, steps: set[int]) -> None:
    """Make the gradients of these steps NaN, by the images that the network sees."""

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        return (args[0] * float("nan"),) if module.training and trainer.step + 1 in steps else None

    trainer.model.register_forward_pre_hook(hook)


def test_a_bad_step_is_left_out_counted_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(tiny(tmp_path, epochs=2))
    spoil(trainer, {2, 5})
    before: dict[int, dict[str, torch.Tensor]] = {}
    inner = trainer.train_step

    def train_step(images: torch.Tensor, masks: torch.Tensor) -> Any:
        state = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        result = inner(images, masks)
        after = trainer.model.state_dict()
        same = all(torch.equal(v, after[k]) for k, v in state.items())
        assert same == (trainer.step + 1 in {2, 5})  # running statistics too
        before[trainer.step + 1] = state
        return result

    trainer.train_step = train_step  # type: ignore[method-assign]
    assert trainer.fit() == 0
    assert len(before) == 6
    out = capsys.readouterr().out
    assert "step 2 is not finite: loss nan nan nan, gradient norm nan; not finite in" in out
    assert "resnet.conv1.weight" in out
    assert "2 steps were not finite and left out" in out
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["bad_steps"] == {"total": 2, "in_a_row": 0}
    assert all(v.isfinite().all() for v in content["weights"].values() if v.is_floating_point())
    rows = content["record"]["steps"]
    assert all(np.isfinite(row["loss_2"]) for row in rows)


def test_too_many_bad_steps_end_the_run_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, epochs=3, max_bad_steps=2))
    spoil(trainer, {4, 5, 6, 7, 8, 9})
    with pytest.raises(RunError, match=r"step 6 is not finite.* 3 in a row \(--max-bad-steps 2\)"):
        trainer.fit()
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["step"] == 3
    assert ".lock" not in names(tmp_path)
    assert Trainer(tiny(tmp_path, epochs=3, resume=True)).fit() == 0


def test_weights_that_are_not_finite_are_never_saved(out: Path) -> None:
    before = (out / "last.pt").read_bytes()
    trainer = Trainer(tiny(out, resume=True))
    with torch.no_grad():
        trainer.model.final_2[1].conv.weight.fill_(float("inf"))
    with pytest.raises(RunError, match=r"1 of \d+ weights are not finite after step 3 \(final_2"):
        trainer.fit()
    assert (out / "last.pt").read_bytes() == before


def test_large_weights_are_finite(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path))
    with torch.no_grad():  # their sum overflows
        trainer.model.final_2[1].conv.weight.fill_(3e38)
    trainer.saver.save(content_of(trainer))
    assert (tmp_path / "last.pt").exists()


@pytest.mark.slow
def test_overwrite_removes_what_the_earlier_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = tiny(tmp_path, epochs=2, tensorboard=True, save_every="1", keep=3)
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
    assert Trainer(tiny(tmp_path, max_steps=1, overwrite=True)).fit() == 0
    assert all((tmp_path / name).read_text() == "mine" for name in mine[1:])


def test_a_wrong_flag_beside_overwrite_removes_nothing(out: Path) -> None:
    before = names(out)
    wrong = tiny(out, overwrite=True, resnet_weights=out / "absent.pt")
    with pytest.raises(UsageError, match=r"absent\.pt"):
        run_train(wrong)
    assert names(out) == before


def pairs(root: Path, count: int = 6) -> Path:
    generator = np.random.default_rng(0)
    for row in range(count):
        for kind in ("images", "masks"):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            if kind == "masks":
                pixels = (pixels[..., 0] > 127).astype(np.uint8) * 255
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"case{row}.png")
    return root


def test_data_are_compared_by_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = pairs(tmp_path / "set"), tmp_path / "run"
    Trainer(tiny(out, data=str(data), max_steps=1)).fit()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "moved")
    for same in ("set", "moved", ("set",), str(tmp_path / "link")):
        if same == str(tmp_path / "link"):
            (tmp_path / "link").symlink_to(data)
        Trainer(tiny(out, data=same, resume=True)).lock.release()  # type: ignore[arg-type]

    sides = (out / "split.csv").read_text()
    trained = next(f"case{row}" for row in range(6) if f"case{row},train" in sides)
    mask = tmp_path / "moved" / "masks" / f"{trained}.png"
    pixels = np.array(Image.open(mask))
    pixels[0, 0] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(mask)
    with pytest.raises(CheckpointError, match=rf"other train images .*1 of \d differ: {trained}"):
        Trainer(tiny(out, data="moved", resume=True))
    with pytest.raises(ValueError, match=r"other train images or masks .names differ"):
        Trainer(tiny(out, resume=True))
    (tmp_path / "moved" / "masks" / f"{trained}.png").unlink()
    (tmp_path / "moved" / "images" / f"{trained}.png").unlink()
    with pytest.raises(ValueError, match=f"not in the data any more: {trained}"):
        Trainer(tiny(out, data="moved", resume=True))


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
    first = tiny(tmp_path, max_steps=2, schedule=schedule)
    first = replace(first, max_steps=None) if "epochs" in change else first
    Trainer(first).fit()
    capsys.readouterr()
    trainer = Trainer(replace(first, **change, resume=True))
    out = capsys.readouterr().out
    assert ("the budget was" in out) == said
    if said:
        assert f"under --schedule {schedule}" in out
        assert f"{trainer._set_lr():.2e}, where it was" in out or "max_time" in change


@pytest.mark.parametrize(
    "missing", ["step", "validated", "optimizer", "rng", "record", "best", "weights", "config"]
)
def test_a_last_pt_that_lacks_a_part_is_named(out: Path, missing: str) -> None:
    content = load_checkpoint(out / "last.pt")
    del content[missing]
    save_checkpoint(out / "last.pt", content)
    word = "optimizer" if missing == "optimizer" else missing
    with pytest.raises(UsageError, match=rf"last\.pt (lacks|holds no) .*{word}"):
        run_train(tiny(out, resume=True))


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
        run_train(tiny(out, resume=True))
    assert "\n" not in str(caught.value)


CPU = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "smaller --batch-size"),
        (RuntimeError(CPU), "out of memory"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "device has failed"),
        (RuntimeError("CUDA error: an illegal memory access\nCUDA kernel"), "device has failed"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "--workers"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(error: Exception, said: str) -> None:
    with pytest.raises(RunError, match=said) as caught, explained(lambda: "the way out"):
        raise error
    assert str(caught.value).endswith("; the way out")
    assert "\n" not in str(caught.value)


def fail_with(error: Exception) -> Any:
    def fail(*args: object) -> None:
        raise error

    return fail


def test_after_a_failure_the_checkpoint_before_it_stands(out: Path) -> None:
    before = (out / "last.pt").read_bytes()
    trainer = Trainer(tiny(out, resume=True))
    trainer.train_step = fail_with(torch.OutOfMemoryError("CUDA"))  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"out of memory .*last\.pt is from before: .*--resume"):
        trainer.fit()
    assert (out / "last.pt").read_bytes() == before
    assert ".lock" not in names(out)


def test_a_disk_that_is_full_leaves_the_checkpoint_and_no_leftover(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = (out / "last.pt").read_bytes(), names(out)
    trainer = Trainer(tiny(out, resume=True))
    monkeypatch.setattr("os.fsync", fail_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RunError, match=r"cannot write .*No space left on device.*make room"):
        trainer.fit()
    assert (out / "last.pt").read_bytes() == before
    assert names(out) == files


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_checkpoint_on_a_full_disk_says_so(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = open

    def full(file: Path, mode: str) -> Any:
        inner(file, mode).close()
        return inner("/dev/full", "wb")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(RunError, match=r"cannot write .*last\.pt.*untouched"):
        save_checkpoint(out / "last.pt", {"weights": torch.zeros(1000)})


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained():
        raise RuntimeError("shapes do not fit")
    with pytest.raises(FileNotFoundError), explained():
        open(tmp_path / "absent")  # noqa: SIM115


def test_a_lock_that_is_lost_stops_the_writing(out: Path) -> None:
    before = (out / "last.pt").read_bytes()
    trainer = Trainer(tiny(out, resume=True))
    (out / ".lock").unlink()
    with pytest.raises(RunError, match="was removed, or another process has taken the folder"):
        trainer.fit()
    assert (out / "last.pt").read_bytes() == before


def test_the_second_run_in_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    first = Trainer(tiny(tmp_path))
    for change in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match=r"is in use by process \d+"):
            run_train(tiny(tmp_path, **change))
    assert first.fit() == 0


@pytest.mark.slow
def test_best_pt_that_is_gone_is_said_and_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(tiny(tmp_path, epochs=2, max_steps=4)).fit()
    content = load_checkpoint(tmp_path / "last.pt")
    save_checkpoint(
        tmp_path / "last.pt", {**content, "best_step": 3, "best": {**content["best"], "value": 2.0}}
    )
    (tmp_path / "best.pt").unlink()
    trainer = Trainer(tiny(tmp_path, epochs=2, resume=True))
    assert "best.pt is gone" in capsys.readouterr().out
    trainer.fit()
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 6


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_other_commands_explain_a_failing_machine_too(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    data, best = pairs(tmp_path / "set"), (out / "best.pt",)
    calls = {
        "evaluate": lambda: run_evaluate(
            EvaluateConfig(checkpoint=best, data=str(data), split="all")
        ),
        "predict": lambda: run_predict(
            PredictConfig(checkpoint=best, images=(str(data / "images"),), out=tmp_path / "masks")
        ),
    }
    monkeypatch.setattr(TransFuse, "forward", fail_with(torch.OutOfMemoryError("CUDA")))
    with pytest.raises(RunError, match=r"out of memory .*smaller --batch-size"):
        calls[command]()
