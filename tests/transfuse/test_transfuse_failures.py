"""Steps that are not finite, a machine that fails: what is said, and what stands."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from short_run import names, pairs, short
from tiny import one_thread  # noqa: F401

from fastclip.transfuse.config.evaluation import EvaluateConfig
from fastclip.transfuse.config.prediction import PredictConfig
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.measuring.command import run_evaluate
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.prediction.predict import run_predict
from fastclip.transfuse.safety.failures import explained
from fastclip.transfuse.storage.checkpoint import load_checkpoint, save_checkpoint
from fastclip.transfuse.training.state import content_of
from fastclip.transfuse.training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains


def spoil(trainer: Trainer, steps: set[int]) -> None:
    """Make the gradients of these steps NaN, by the images that the network sees."""

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        return (args[0] * float("nan"),) if module.training and trainer.step + 1 in steps else None

    trainer.model.register_forward_pre_hook(hook)


def test_a_bad_step_is_left_out_counted_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(short(tmp_path, epochs=2))
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
    trainer = Trainer(short(tmp_path, epochs=3, max_bad_steps=2))
    spoil(trainer, {4, 5, 6, 7, 8, 9})
    with pytest.raises(RunError, match=r"step 6 is not finite.* 3 in a row \(--max-bad-steps 2\)"):
        trainer.fit()
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["step"] == 3
    assert ".lock" not in names(tmp_path)
    assert Trainer(short(tmp_path, epochs=3, resume=True)).fit() == 0


def test_weights_that_are_not_finite_are_never_saved(out: Path) -> None:
    before = (out / "last.pt").read_bytes()
    trainer = Trainer(short(out, resume=True))
    with torch.no_grad():
        trainer.model.final_2[1].conv.weight.fill_(float("inf"))
    with pytest.raises(RunError, match=r"1 of \d+ weights are not finite after step 3 \(final_2"):
        trainer.fit()
    assert (out / "last.pt").read_bytes() == before


def test_large_weights_are_finite(tmp_path: Path) -> None:
    trainer = Trainer(short(tmp_path))
    with torch.no_grad():  # their sum overflows
        trainer.model.final_2[1].conv.weight.fill_(3e38)
    trainer.saver.save(content_of(trainer))
    assert (tmp_path / "last.pt").exists()


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
    trainer = Trainer(short(out, resume=True))
    trainer.train_step = fail_with(torch.OutOfMemoryError("CUDA"))  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"out of memory .*last\.pt is from before: .*--resume"):
        trainer.fit()
    assert (out / "last.pt").read_bytes() == before
    assert ".lock" not in names(out)


def test_a_disk_that_is_full_leaves_the_checkpoint_and_no_leftover(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = (out / "last.pt").read_bytes(), names(out)
    trainer = Trainer(short(out, resume=True))
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
