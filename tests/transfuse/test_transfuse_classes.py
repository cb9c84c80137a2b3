"""Training on what the reader gives: classes, ignored pixels, folders, resumed splits."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from pairs import SIZE, write
from PIL import Image
from tiny import one_thread  # noqa: F401

from fastclip.cli import main
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data import DataError
from fastclip.transfuse.measuring.metrics import binary_scores
from fastclip.transfuse.storage.checkpoint import CheckpointError
from fastclip.transfuse.training.objective import head_losses
from fastclip.transfuse.training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains


def tiny(data: Path, out: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        data=str(data),
        model="transfuse_t",
        size=f"{SIZE[0]}x{SIZE[1]}",
        out=out,
        batch_size=4,
        epochs=1,
        max_steps=2,
        val_fraction=0.3,
        device="cpu",
    )
    return replace(config, **changes)


def zones(mask: np.ndarray) -> Image.Image:
    """Class 1 on the left and 3 on the right of the object; 2 nowhere."""
    right = np.arange(mask.shape[1]) >= 16
    return Image.fromarray(np.where(mask, np.where(right, 3, 1), 0).astype(np.uint8))


def with_ignore(mask: np.ndarray) -> Image.Image:
    values = mask.astype(np.uint8)
    values[:4] = 255
    return Image.fromarray(values)


def test_several_classes_train_and_are_scored_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set", count=12, draw=zones)
    trainer = Trainer(tiny(tmp_path / "set", tmp_path / "run", classes=3))
    assert trainer.model.num_classes == 3
    assert trainer.fit() == 0
    assert "Dice per class" in capsys.readouterr().out
    best = str(tmp_path / "run" / "best.pt")
    table = tmp_path / "scores.csv"
    evaluate = ["evaluate", "--checkpoint", best, "--data", str(tmp_path / "set")]
    assert main([*evaluate, "--split", "all", "--csv", str(table)]) == 0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 12
    row = rows[0]
    for at in ("own_size", "network_size"):
        mean = np.mean([float(row[f"dice_class{n}_{at}"]) for n in (1, 2, 3)])
        assert float(row[f"dice_{at}"]) == pytest.approx(mean, abs=1e-5)
    assert main([*evaluate, "--instances", "union"]) == 2
    assert "predicts 3 map(s)" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="--classes 3, not 2"):
        Trainer(tiny(tmp_path / "set", tmp_path / "run", classes=2, resume=True))


def test_ignored_pixels_change_no_loss_and_no_score() -> None:
    torch.manual_seed(0)
    maps = tuple(torch.randn(2, 1, *SIZE) for _ in range(3))
    masks = (torch.rand(2, 1, *SIZE) > 0.5).to(torch.uint8) * 255
    ignored = torch.zeros_like(masks)
    ignored[:, :, :4] = 255
    other = masks.clone()
    other[:, :, :4] = 255 - other[:, :, :4]
    one, two = (head_losses(maps, torch.cat([m, ignored], 1)) for m in (masks, other))  # type: ignore[arg-type]
    assert torch.equal(one, two)
    assert not torch.equal(one, head_losses(maps, masks))  # type: ignore[arg-type]
    valid = ignored == 0
    scores = [binary_scores(maps[2] > 0, m > 127, valid) for m in (masks, other)]
    assert all(map(torch.equal, *scores))
    cut = binary_scores(maps[2][:, :, 4:] > 0, masks[:, :, 4:] > 127)
    assert all(map(torch.equal, scores[0], cut))
    nothing = binary_scores(maps[2] > 0, masks > 127, torch.zeros_like(valid))
    assert all((values == 1).all() for values in nothing)


@pytest.mark.parametrize("augment", [True, False])
def test_ignored_pixels_train(tmp_path: Path, augment: bool) -> None:
    write(tmp_path / "set", count=12, draw=with_ignore)
    config = tiny(tmp_path / "set", tmp_path / "run", ignore=255, augment=augment)
    trainer = Trainer(config)
    assert trainer.fit() == 0
    rows = list(csv.DictReader((tmp_path / "run" / "steps.csv").open()))
    assert rows
    assert all(math.isfinite(float(row[f"loss_{head}"])) for row in rows for head in "21x")


def test_the_first_lines_say_how_masks_were_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "set", count=12)
    command = ["train", "--data", str(data), "--model", "transfuse_t", "--size", "32x48"]
    command += ["--batch-size", "4", "--max-steps", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line for line in lines[:6] if line.startswith("masks: 0/255")]
    assert len(first) == 2
    assert all("0 empty; object on" in line for line in first)


def test_a_resumed_run_keeps_its_split(tmp_path: Path) -> None:
    data = write(tmp_path / "set", count=16)
    Trainer(tiny(data, tmp_path / "run", max_steps=1)).fit()
    sides = {r["image"]: r["split"] for r in csv.DictReader((tmp_path / "run/split.csv").open())}
    assert set(sides.values()) == {"train", "val"}
    write(tmp_path / "set", count=8, first=16)
    resumed = Trainer(tiny(data, tmp_path / "run", max_steps=2, resume=True))
    names = dict.fromkeys(resumed.train_set.names, "train")
    names |= dict.fromkeys(resumed.val_set.names, "val")
    assert names == sides
    resumed.lock.release()
    (data / "images" / "case00.png").unlink()
    (data / "masks" / "case00.png").unlink()
    with pytest.raises(DataError, match="of the run are not in the data any more: case00"):
        Trainer(tiny(data, tmp_path / "run", max_steps=2, resume=True))


def test_a_set_without_val_is_parted_for_training(tmp_path: Path) -> None:
    write(tmp_path / "set" / "training", count=12)
    write(tmp_path / "set" / "test", count=4)
    trainer = Trainer(tiny(tmp_path / "set", tmp_path / "run"))
    train, val = set(trainer.train_set.names), set(trainer.val_set.names)
    assert len(train | val) == 12
    assert val
    assert not train & val


def test_test_sets_are_scored_in_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set" / "TrainDataset", count=8)
    for name in ("CVC-300", "ETIS", "Kvasir"):
        write(tmp_path / "set" / "TestDataset" / name, count=2)
    assert Trainer(tiny(tmp_path / "set", tmp_path / "run")).fit() == 0
    capsys.readouterr()
    best = str(tmp_path / "run" / "best.pt")
    evaluate = ["evaluate", "--checkpoint", best, "--data", str(tmp_path / "set")]
    assert main([*evaluate, "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert "6 images at 32x48" in out
    heads = [line for line in out.splitlines() if "Kvasir" in line]
    sets = "all (6) CVC-300 (2) ETIS (2) Kvasir (2)"
    assert [" ".join(head.split()) for head in heads] == [
        f"own size {sets}",
        f"network size 32x48 {sets}",
    ]


def test_bad_files_are_left_out_and_written_down(tmp_path: Path) -> None:
    data = write(tmp_path / "set", count=12)
    (data / "images" / "case05.png").write_text("x")
    with pytest.raises(DataError, match="case05"):
        Trainer(tiny(data, tmp_path / "run"))
    Trainer(tiny(data, tmp_path / "run", skip_bad=True)).fit()
    (row,) = csv.DictReader((tmp_path / "run" / "skipped.csv").open())
    assert "case05.png cannot be read" in row["problem"]


def test_training_from_the_cache_is_the_same(tmp_path: Path) -> None:
    data = write(tmp_path / "set", count=12)
    weights = []
    for run, cache in (("a", None), ("b", tmp_path / "c"), ("c", tmp_path / "c")):
        trainer = Trainer(tiny(data, tmp_path / run, cache=cache))
        trainer.fit()
        weights.append(trainer.model.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(value, other[key]) for key, value in weights[0].items())
