"""Training in several processes: the curve of one, exact validations, one end for all."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import needs_train  # noqa: F401
import pytest
import torch
from launched import apart, errors, every, finished, launched, losses, moved, validations

from fastclip.transfuse.storage.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finished(1, out)
    return out


def test_two_processes_have_the_curve_of_one(tmp_path: Path, alone: Path) -> None:
    said = finished(2, tmp_path / "two", "--sync-bn")
    one, two = losses(alone), losses(tmp_path / "two")
    assert len(one) == 20
    assert (one - two).abs().max() < 1e-5
    assert apart(alone, tmp_path / "two") < 0.02 * moved(alone)
    for row, other in zip(validations(alone), validations(tmp_path / "two"), strict=True):
        assert other == pytest.approx(row, abs=1e-5)
    assert said.count("epoch 1, ") == said.count("20 s") + 1 == 1
    assert "2 x cpu" in said
    files = [{file.name for file in out.iterdir()} for out in (alone, tmp_path / "two")]
    assert files[0] == files[1]


@every
@pytest.mark.parametrize(
    "flags",
    [
        ("--batch-size", "2", "--accumulate", "2", "--ema", "0.9"),
        ("--freeze", "resnet", "--freeze-epochs", "1", "--grad-checkpointing"),
        ("--clip", "agc", "--multi-scale", "1", "2", "--save-every", "3"),
    ],
)
def test_it_is_the_same_curve_with_other_flags(tmp_path: Path, flags: tuple[str, ...]) -> None:
    for world in (1, 2):
        finished(world, tmp_path / str(world), "--sync-bn", *flags)
    one, two = (losses(tmp_path / str(world)) for world in (1, 2))
    assert (one - two).abs().max() < 1e-5
    assert validations(tmp_path / "2")[-1] == pytest.approx(
        validations(tmp_path / "1")[-1], abs=1e-5
    )


@every
def test_without_sync_bn_each_process_has_its_own_statistics(tmp_path: Path, alone: Path) -> None:
    finished(2, tmp_path)
    assert 1e-4 < (losses(alone) - losses(tmp_path)).abs().max() < 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=every)])
def test_a_stopped_run_goes_on_in_another_number_of_processes(
    tmp_path: Path, alone: Path, number: signal.Signals
) -> None:
    with launched(2, tmp_path, "--sync-bn", "--epochs", "1000") as run:
        run.wait_for("step 1:")
        run.process.send_signal(number)
        _, out, err = run.end()
    assert out.count("stopped at step") == 1, err
    content = load_checkpoint(tmp_path / "last.pt")
    assert 0 < content["step"] < 20
    assert not list(tmp_path.glob("*.part"))
    assert not (tmp_path / ".lock").exists()
    world = 4 if number == signal.SIGINT else 1
    finished(world, tmp_path, "--sync-bn", "--resume")
    assert (losses(tmp_path) - losses(alone)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("memory 1 3", r"process 1 of 2: the device is out of memory .*last\.pt is from before"),
        pytest.param(
            "memory 0 3",
            r"error: the device is out of memory .*last\.pt is from before",
            marks=every,
        ),
        pytest.param(
            "kill 1 3",
            r"error: another process of the run has ended.*last\.pt is from before",
            marks=every,
        ),
        ("kill 0 3", r"error: another process of the run has ended.*last\.pt is from before"),
        pytest.param(
            "hang 1 3",
            r"error: another process of the run .*does not answer .*last\.pt is from be",
            marks=every,
        ),
    ],
)
def test_an_error_in_one_process_ends_all_with_one_sentence(
    tmp_path: Path, fault: str, said: str
) -> None:
    flags = ("--save-every", "1", "--ddp-timeout", "0.1")
    with launched(2, tmp_path, *flags, fault=fault) as run:
        code, _, err = run.end()
    assert code == 1
    (line,) = errors(err)
    assert re.search(said, line), line
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3


@every
def test_a_fault_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    with launched(2, tmp_path, fault="bug 1 1") as run:
        code, _, err = run.end()
    assert code == 1
    assert "TypeError: a fault of the program" in err


@every
def test_a_signal_to_one_process_stops_all(tmp_path: Path) -> None:
    with launched(2, tmp_path, fault="term 1 3") as run:
        _, out, _ = run.end()
    assert out.count("stopped at step 4") == 1
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_a_bad_step_of_one_process_is_left_out_by_all(tmp_path: Path) -> None:
    said = finished(2, tmp_path, "--sync-bn", fault="nan 1 3")
    assert said.count("step 4 is not finite") == 1
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["bad_steps"]["total"] == 1
    assert all(value.isfinite().all() for value in content["weights"].values())


def test_processes_that_are_started_again_go_on(tmp_path: Path) -> None:
    finished(2, tmp_path / "whole", "--sync-bn")
    out = tmp_path / "run"
    said = finished(2, out, "--sync-bn", "--save-every", "2", fault="kill 1 5", restarts=1)
    assert "started again" in said
    assert torch.equal(losses(out), losses(tmp_path / "whole"))
    # Before the first checkpoint there is nothing to go on from: it begins again.
    out = tmp_path / "early"
    finished(2, out, "--sync-bn", fault="kill 0 1", restarts=1)
    assert torch.equal(losses(out), losses(tmp_path / "whole"))


@every
def test_a_restart_does_not_take_an_earlier_run_for_its_own(tmp_path: Path) -> None:
    finished(2, tmp_path, "--max-steps", "1")
    before = (tmp_path / "last.pt").read_bytes()
    with launched(2, tmp_path, "--max-steps", "2", restarts=1) as run:
        code, _, err = run.end()
    assert code == 1
    assert len(errors(err)) == 2  # one for each attempt
    assert "holds an earlier run: --resume" in err
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batch-size", "5"), "--batch-size 5 does not divide by 2 processes"),
        (("--batch-size", "64", "--synthetic-images", "15"), "batches of 64 end with one of 15"),
        (("--lr", "-1"), "--lr must be positive"),
    ],
)
def test_what_cannot_be_shared_is_refused_once(
    tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    with launched(2, tmp_path / "run", *flags) as run:
        code, _, err = run.end()
    assert code == 1  # torchrun's
    (line,) = errors(err)
    assert said in line
    assert not (tmp_path / "run" / "last.pt").exists()
