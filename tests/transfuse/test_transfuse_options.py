"""Whole runs with the flags of optimization: they resume exactly, and each flag shows."""

from __future__ import annotations

import csv
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch
from tiny import batch, learner, one_thread, tiny  # noqa: F401
from torch import nn

from fastclip.transfuse.measuring.evaluate import evaluate
from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.storage.checkpoint import CheckpointError, load_checkpoint, load_model
from fastclip.transfuse.training.batches import TrainingBatches
from fastclip.transfuse.training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains

EXACT = [
    {"ema": 0.9, "accumulate": 2, "batch_size": 2, "clip": "zclip", "freeze": ("resnet.*",)}
    | {"freeze_epochs": 1, "multi_scale": (0.75, 1.0, 1.5), "schedule": "poly"},
    {"precision": "fp16", "clip": "autoclip", "optimizer": "sgd", "ema": 0.99, "accumulate": 2}
    | {"batch_size": 2},
    {"layer_decay": 0.8, "backbone_lr_scale": 0.5, "schedule": "one-cycle", "warmup_steps": 0},
]


def stop_at(trainer: Trainer, step: int) -> None:
    """Let a signal arrive during that step."""
    inner = trainer.train_step

    def train_step(images: torch.Tensor, masks: torch.Tensor) -> Any:
        if trainer.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return inner(images, masks)

    trainer.train_step = train_step  # type: ignore[method-assign]


def tensors(content: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor and number below `content`, by its path."""
    if isinstance(content, torch.Tensor):
        return {path: content}
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, (list, tuple)):
        items = dict(enumerate(content)).items()
    else:
        return {path: torch.tensor(content)} if isinstance(content, (int, float)) else {}
    return {k: v for key, value in items for k, v in tensors(value, f"{path}.{key}").items()}


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.parametrize("flags", EXACT)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, flags: dict[str, Any], step: int
) -> None:
    config = partial(tiny, **flags)
    assert Trainer(config(tmp_path / "whole")).fit() == 0
    first = Trainer(config(tmp_path / "parts"))
    stop_at(first, step)
    assert first.fit() == 130
    torch.rand(100)  # another process has another generator state
    second = Trainer(config(tmp_path / "parts", resume=True))
    assert second.step == step
    assert second.fit() == 0
    whole, parts = (load_checkpoint(tmp_path / run / "last.pt") for run in ("whole", "parts"))
    names = ("weights", "training_weights", "optimizer", "update", "best", "rng")
    one, other = ({name: c.get(name) for name in names} for c in (whole, parts))
    assert tensors(one).keys() == tensors(other).keys()
    wrong = [k for k, v in tensors(one).items() if not torch.equal(v, tensors(other)[k])]
    assert wrong == []


def test_the_average_is_validated_and_saved_under_weights(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, ema=0.5, max_steps=3))
    trainer.fit()
    average = trainer.learner.evaluated.state_dict()
    for name in ("best.pt", "last.pt"):
        model, content = load_model(tmp_path / name)
        assert all(torch.equal(v, average[k]) for k, v in model.state_dict().items())
    result = evaluate(model, trainer.val_set)
    assert result is not None
    row = next(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(row["dice"]) == pytest.approx(result.dice, abs=1e-5)
    raw = content["training_weights"]
    assert any(not torch.equal(v, average[k]) for k, v in raw.items())


@pytest.mark.slow
def test_patience_ends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(tiny(tmp_path, epochs=50, lr=1e-12, patience=2, best_by="loss"))
    losses = iter([0.9, 0.8, 0.85, 0.81, 0.1])
    inner = trainer.best.update

    def update(result: Any) -> bool:
        return inner(result._replace(loss=next(losses)))

    trainer.best.update = update  # type: ignore[method-assign]
    assert trainer.fit() == 0
    assert trainer.epoch == 4
    assert "best loss 0.8000" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 8
    again = Trainer(tiny(tmp_path, epochs=50, lr=1e-12, patience=2, best_by="loss", resume=True))
    assert again.best.exhausted()
    assert again.fit() == 0
    assert again.step == trainer.step


def test_workers_live_as_long_as_the_run(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, workers=1))
    pids = []
    for epoch in range(3):
        assert len(list(trainer.batches.epoch(epoch))) == 4
        pids.append([w.pid for w in trainer.batches.fetcher.loader._iterator._workers])
    assert pids[0] == pids[1] == pids[2]
    assert pids[0][0] != os.getpid()


def test_augmentation_and_scales_reach_the_step(tmp_path: Path) -> None:
    config = tiny(tmp_path, multi_scale=(0.5, 1.5))
    trainer = Trainer(config)
    sizes = {tuple(images.shape[-2:]) for e in range(4) for images, _ in trainer.batches.epoch(e)}
    assert sizes == {(16, 16), (48, 48)}
    plain, varied = (
        next(TrainingBatches(trainer.train_set, tiny(tmp_path, augment=a), trainer.device).epoch(0))
        for a in (False, True)
    )
    assert not torch.equal(plain[0], varied[0])


@pytest.mark.parametrize("clip", ["norm", "value", "agc"])
def test_reference_ops_give_the_same_curve(tmp_path: Path, clip: str) -> None:
    curves = []
    # Adam would turn the rounding of gradients that are 0 but for it into whole steps.
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.02, "clip": clip}
    options |= {"clip_norm": 0.5, "clip_value": 1e-3}
    for reference in (False, True):
        made = learner(tmp_path, reference_ops=reference, **options)
        curves.append([torch.stack([*made.step(*batch(seed=n), n)[0]]) for n in range(6)])
    difference = (torch.stack(curves[0]) - torch.stack(curves[1])).abs().max()
    assert difference < 1e-5
    assert (curves[0][-1] - curves[0][0]).abs().max() > 1e-3


def test_reference_ops_call_none_of_fastclips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastclip

    called: list[str] = []
    for name in ("structure_loss", "clip_grads_in_step_", "clip_grad_norm_", "get_total_norm"):
        original = getattr(fastclip, name)

        def spy(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            called.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(fastclip, name, spy)
    learner(tmp_path, reference_ops=True).step(*batch(), 0)
    assert called == []
    learner(tmp_path).step(*batch(), 0)
    assert set(called) == {"structure_loss", "clip_grads_in_step_"}
    with pytest.raises(ValueError, match="--reference-ops: torch has no --clip zclip"):
        tiny(tmp_path, reference_ops=True, clip="zclip").check()


def test_reference_ops_leave_ignored_pixels_out(tmp_path: Path) -> None:
    images, masks = batch()
    ignored = torch.zeros_like(masks)
    ignored[:, :, :, 10:] = 255
    ignored[0] = 255
    both = torch.cat([masks, ignored], 1)
    ours, theirs = (
        learner(tmp_path, reference_ops=reference).step(images, both, 0)[0]
        for reference in (False, True)
    )
    assert torch.allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [False, True])
def test_a_profile_says_where_the_step_goes(
    tmp_path: Path, reference: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path, epochs=6, profile=True, reference_ops=reference, optimizer="adam")
    trainer = Trainer(config)
    trainer.val_set = trainer.val_set.subset([0])
    assert trainer.fit() == 0
    rows = {row["phase"]: row for row in csv.DictReader((tmp_path / "profile.csv").open())}
    phases = ["data", "forward", "loss", "backward", "clip", "optimizer"]
    assert [*rows] == [*phases, "rest", "step, traced", "step, not traced"]
    times = {name: float(row["ms"]) for name, row in rows.items()}
    assert all(times[name] > 0 for name in phases)
    assert times["backward"] > times["clip"]
    assert sum(times[name] for name in [*phases, "rest"]) == pytest.approx(
        times["step, traced"], rel=1e-3
    )
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"step: forward", "step: backward"} <= {event.get("name") for event in events}
    assert "steps traced to" in capsys.readouterr().out


def test_init_takes_what_fits_and_says_the_rest(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = create_model("transfuse_t", num_classes=3)
    torch.save(other.state_dict(), tmp_path / "three.pth")
    trainer = Trainer(tiny(tmp_path / "run", init=tmp_path / "three.pth"))
    loaded, line = trainer.model.state_dict(), trainer.notes[0]
    fresh = Trainer(tiny(tmp_path / "fresh")).model.state_dict()
    heads = [k for k in loaded if loaded[k].shape != other.state_dict()[k].shape]
    assert {key.partition(".")[0] for key in heads} == {"final_x", "final_1", "final_2"}
    for key, value in loaded.items():
        source = fresh if key in heads else other.state_dict()
        assert torch.equal(value, source[key]), key
    assert f"{len(loaded) - len(heads)} of {len(loaded)} tensors; not loaded: " in line
    assert "final_x.2.conv.weight [3, 32, 3, 3] there, [1, 32, 3, 3] here" in line


def test_init_of_another_network_is_refused(tmp_path: Path) -> None:
    weights = create_model("transfuse_t").state_dict()
    weights["up1.conv.double_conv.0.weight"] = torch.zeros(1, 2, 3, 3)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd.pth is of another network.*up1.conv"):
        Trainer(tiny(tmp_path / "run", init=tmp_path / "odd.pth"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Trainer(tiny(tmp_path / "run", init=tmp_path / "none.pth"))


def test_compile_compiles_the_network_and_keeps_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(len(list(graph.graph.nodes)))
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partial_compile(nn.Module.compile, backend))
    made, plain = learner(tmp_path, compile=True, ema=0.9), learner(tmp_path)
    assert made.model.state_dict().keys() == plain.model.state_dict().keys()
    (one, _), (other, _) = (each.step(*batch(), 0) for each in (made, plain))
    assert sum(compiled) > 100
    assert torch.allclose(one, other, rtol=1e-5)
    assert compiled
    made.evaluated.eval()


def partial_compile(original: Any, backend: Any) -> Any:
    """`Module.compile` with a backend that needs no C++ compiler."""
    return lambda self: original(self, backend=backend)
