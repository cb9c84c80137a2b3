"""Training with --fsdp: the curve and the files of one process, of which each rank holds a part."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch
from launched import apart, errors, every, finished, launched, losses, moved, validations

from fastclip.cli import main
from fastclip.transfuse.storage.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
]
HELD = str(Path(__file__).with_name("held.py"))
SHARDED = ("--fsdp", "--sync-bn")
EMA = ("--ema", "0.9")
# One step of Adam: what it keeps then are the clipped gradients and their squares.
ONE_STEP = (*EMA, "--optimizer", "adam", "--max-steps", "1", "--norms-every", "1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finished(1, out, *EMA)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run sharded over two processes."""
    out = tmp_path_factory.mktemp("two") / "run"
    assert "2 x cpu" in finished(2, out, *SHARDED, *EMA, "--save-every", "3")
    return out


def norms(out: Path) -> list[list[float]]:
    with open(out / "norms.csv", newline="") as stream:
        rows = [
            {k: v for k, v in row.items() if "worst" not in k} for row in csv.DictReader(stream)
        ]
    return [[float(value) for value in row.values()] for row in rows]


def shapes(state: Any) -> Any:
    """A checkpoint in which shapes and types stand for tensors and numbers."""
    if isinstance(state, dict):
        return {key: shapes(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.shape, state.dtype, state.device.type
    return type(state)


def test_it_has_the_curve_and_the_files_of_one_process(two: Path, alone: Path) -> None:
    assert len(losses(two)) == 20
    assert (losses(two) - losses(alone)).abs().max() < 1e-5
    assert apart(two, alone) < 0.02 * moved(alone)
    for read in (validations, norms):
        for mine, other in zip(read(two), read(alone), strict=True):
            assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert {file.name for file in two.iterdir()} == {file.name for file in alone.iterdir()}
    contents = [load_checkpoint(run / "last.pt") for run in (two, alone)]
    for key in ("model", "weights", "training_weights", "optimizer", "update"):
        assert shapes(contents[0][key]) == shapes(contents[1][key]), key
    size, expected = ((run / "last.pt").stat().st_size for run in (two, alone))
    assert size == pytest.approx(expected, rel=0.01)


def test_evaluate_reads_its_checkpoint(tmp_path: Path, two: Path) -> None:
    found = tmp_path / "found.json"
    flags = ("--data", "synthetic", "--device", "cpu", "--json", str(found))
    assert main(["evaluate", "--checkpoint", str(two / "last.pt"), *flags]) == 0
    loss = json.loads(found.read_text())["loss_network_size"]
    assert loss == pytest.approx(validations(two)[-1][1], abs=1e-5)


@pytest.mark.parametrize("sharded", ["first", pytest.param("second", marks=every)])
def test_a_run_goes_on_with_or_without_it(tmp_path: Path, alone: Path, sharded: str) -> None:
    for part, last in (("first", "7"), ("second", "20")):
        how: tuple[Any, ...] = (2, tmp_path, *SHARDED) if part == sharded else (1, tmp_path)
        # Without --sync-bn in one process nothing changes, but the flag has to be the same.
        flags = ("--sync-bn", *EMA, "--max-steps", last)
        finished(*how, *flags, *(["--resume"] if part == "second" else []))
        assert load_checkpoint(tmp_path / "last.pt")["step"] == int(last)
    assert (losses(tmp_path) - losses(alone)).abs().max() < 1e-5
    assert apart(tmp_path, alone) < 0.02 * moved(alone)


def test_each_process_holds_half_and_adam_steps_by_the_whole_norm(tmp_path: Path) -> None:
    half, one = tmp_path / "half", tmp_path / "one"
    said = finished(2, half, *SHARDED, *ONE_STEP, program=HELD)
    held = [json.loads(line) for line in said.splitlines() if line.startswith('{"weights"')]
    assert len(held) == 2
    for counts in held:
        for name, (here, whole) in counts.items():
            assert 0.45 * whole < here < 0.55 * whole, name
    finished(1, one, *ONE_STEP)
    states = [load_checkpoint(out / "last.pt")["optimizer"]["state"] for out in (half, one)]
    for mine, other in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(mine["exp_avg"], other["exp_avg"], rtol=1e-3, atol=1e-6)
    # The norm is clipped, to 2; torch's Adam keeps half of a first gradient.
    kept = torch.stack([state["exp_avg"].norm() for state in states[0].values()]).norm()
    assert float(kept) == pytest.approx(1.0, rel=1e-3)


def test_a_bad_step_is_left_out_by_all(tmp_path: Path) -> None:
    said = finished(2, tmp_path, *SHARDED, "--max-steps", "6", fault="nan 0 3")
    assert said.count("step 4 is not finite") == 1
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["bad_steps"]["total"] == 1
    assert all(value.isfinite().all() for value in content["weights"].values())


def test_a_process_that_is_killed_ends_all_with_one_sentence(tmp_path: Path) -> None:
    flags = (*SHARDED, "--save-every", "1", "--ddp-timeout", "0.2")
    with launched(2, tmp_path, *flags, fault="kill 1 3") as run:
        code, _, err = run.end()
    assert code == 1
    (line,) = errors(err)
    assert re.search(r"another process of the run has ended.*last\.pt is from before", line), line
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3


@every
@pytest.mark.parametrize(
    "flags",
    [
        ("--batch-size", "2", "--accumulate", "2", "--precision", "fp32"),
        ("--freeze", "resnet", "--grad-checkpointing", "--clip", "value"),
        ("--clip", "agc", "--multi-scale", "1", "2"),
        ("--clip", "autoclip"),
        ("--clip", "zclip"),
        ("--clip", "none", "--layer-decay", "0.9"),
    ],
)
def test_it_is_the_same_curve_with_other_flags(tmp_path: Path, flags: tuple[str, ...]) -> None:
    finished(1, tmp_path / "1", *flags)
    finished(2, tmp_path / "2", *SHARDED, *flags)
    assert (losses(tmp_path / "1") - losses(tmp_path / "2")).abs().max() < 1e-5


def test_what_does_not_go_with_it_is_refused_once_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with launched(2, tmp_path / "run", *SHARDED, "--compile") as run:
        code, _, err = run.end()
    assert code == 1
    (line,) = errors(err)
    assert "--fsdp does not go with --compile" in line
    assert not (tmp_path / "run").exists()
