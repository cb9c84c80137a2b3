"""The trainer: it learns, resumes bit by bit, and loses no checkpoint."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch
from tiny import one_thread, tiny  # noqa: F401

from fastclip.transfuse import ARCHITECTURES
from fastclip.transfuse.config.checks import uses_bf16
from fastclip.transfuse.data.synthetic import synthetic_samples
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.measuring.evaluate import evaluate
from fastclip.transfuse.storage.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_model,
)
from fastclip.transfuse.training.trainer import Trainer


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(file)["weights"]


def test_a_run_writes_everything_and_says_it_is_synthetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(tiny(tmp_path, epochs=1, max_steps=3))
    assert trainer.fit() == 0
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {
        *("best.pt", "last.pt", "metrics.csv", "steps.csv", "curves.png", "overlays.png"),
        *("config.yaml", "images.csv", "cases", "report.json", "report.html", "norms.csv"),
    }
    (row,) = csv.DictReader((tmp_path / "metrics.csv").open())
    assert row["step"] == "3"
    assert row["data"] == "synthetic (seed 1)"
    assert 0 <= float(row["dice"]) <= 1
    out = capsys.readouterr().out
    assert "synthetic (seed 1) loss" in out
    model, content = load_model(tmp_path / "best.pt")
    result = evaluate(model, trainer.val_set)
    assert result is not None
    assert result.dice == pytest.approx(content["dice"], abs=1e-6)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, augment=False, schedule="constant"))
    images, masks = trainer.train_set.images[:8], trainer.train_set.masks[:8]
    losses = [float(trainer.train_step(images, masks)[0][0]) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_bf16_runs_the_network_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny(tmp_path, precision="bf16"))
    seen: list[torch.dtype] = []
    trainer.model.register_forward_hook(lambda *args: seen.append(args[2][2].dtype))
    losses, norm = trainer.train_step(trainer.train_set.images[:4], trainer.train_set.masks[:4])
    assert seen == [torch.bfloat16]
    assert losses.dtype == norm.dtype == torch.float32
    assert {p.dtype for p in trainer.parameters} == {torch.float32}

    cpu = torch.device("cpu")
    for has, expected in (({"avx512_bf16": True}, True), ({"avx2": True}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert uses_bf16("auto", cpu) == expected
    assert not uses_bf16("fp32", cpu)


def test_clipping_bounds_the_gradient_of_the_step(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, clip_norm=0.01, optimizer="sgd", momentum=0, weight_decay=0))
    before = [p.detach().clone() for p in trainer.parameters]
    _, norm = trainer.train_step(trainer.train_set.images[:4], trainer.train_set.masks[:4])
    moved = [(p.detach() - old).norm() for p, old in zip(trainer.parameters, before, strict=True)]
    assert norm > 0.02
    lr = trainer.optimizer.param_groups[0]["lr"]
    assert float(torch.stack(moved).norm()) == pytest.approx(0.01 * lr, rel=1e-2)


def stop_at(trainer: Trainer, step: int) -> None:
    """Let a signal arrive during that step."""
    inner = trainer.train_step

    def train_step(images: torch.Tensor, masks: torch.Tensor) -> Any:
        if trainer.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return inner(images, masks)

    trainer.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.parametrize(  # within an epoch; at its end; at the last of all
    "step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 8))]
)
def test_an_interrupted_run_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = replace(ARCHITECTURES["transfuse_t"], drop=0.2)  # draws from the generator
    monkeypatch.setitem(ARCHITECTURES, "transfuse_t", dropping)
    assert Trainer(tiny(tmp_path / "whole")).fit() == 0

    first = Trainer(tiny(tmp_path / "parts"))
    stop_at(first, step)
    assert first.fit() == 130
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == step
    torch.rand(100)  # another process has another generator state
    second = Trainer(tiny(tmp_path / "parts", resume=True))
    assert second.step == step
    assert second.fit() == 0

    whole, parts = (load_checkpoint(tmp_path / run / "last.pt") for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 8
    assert all(torch.equal(v, parts["weights"][k]) for k, v in whole["weights"].items())
    states = (c["optimizer"]["state"] for c in (whole, parts))
    for one, other in zip(*(s.values() for s in states), strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in c["record"]["epochs"]]
        for c in (whole, parts)
    ]
    assert rows[0] == rows[1]


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Trainer(tiny(tmp_path, resume=True))
    Trainer(tiny(tmp_path, max_steps=1)).fit()
    with pytest.raises(CheckpointError, match="holds an earlier run: --resume"):
        Trainer(tiny(tmp_path))
    with pytest.raises(CheckpointError, match="--model transfuse_t, not transfuse_s"):
        Trainer(tiny(tmp_path, model="transfuse_s", resume=True))
    with pytest.raises(CheckpointError, match="--batch-size 4, not 8"):
        Trainer(tiny(tmp_path, batch_size=8, resume=True))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path, max_steps=1)).fit()
    before = (tmp_path / "last.pt").read_bytes()
    trainer = Trainer(tiny(tmp_path, resume=True, max_bad_steps=0))
    weight = trainer.model.final_2[1].conv.weight
    kept = trainer.model.up1.conv.double_conv[0].weight.clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(RunError, match=r"step 2 is not finite: loss nan .*lower --lr"):
        trainer.fit()
    assert torch.equal(trainer.model.up1.conv.double_conv[0].weight, kept)
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.slow
def test_time_ends_a_run_with_the_decay_complete(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, epochs=10_000, max_time=0.05, schedule="linear"))
    started = time.monotonic()
    assert trainer.fit() == 0
    assert time.monotonic() - started < 30
    assert 0 < trainer.step < 40_000
    lr = trainer.optimizer.param_groups[0]["lr"]
    assert lr < 0.5 * trainer.config.lr
    assert (tmp_path / "best.pt").exists()


def test_every_image_counts_the_same_in_an_evaluation(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path))
    samples = synthetic_samples(5, (32, 32), seed=9)
    one, other = (evaluate(trainer.model, samples, size) for size in (2, 5))
    assert one is not None
    assert other is not None
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.dice == pytest.approx(other.dice, rel=1e-5)
    assert trainer.model.training


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastclip", "train", "--data", "synthetic"]
    command += ["--model", "transfuse_t", "--size", "32x32", "--batch-size", "4"]
    command += ["--epochs", "10000", "--synthetic-images", "64", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("step 20"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "--resume" in out
    assert load_checkpoint(tmp_path / "last.pt")["step"] >= 20
    model, _ = load_model(tmp_path / "last.pt")
    assert all(value.isfinite().all() for value in model.state_dict().values())
