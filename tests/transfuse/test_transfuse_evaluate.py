"""`fastclip evaluate`: both sizes, intervals, tables, and images that are held out."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from evaluated import Run, checkpoint
from pairs import SIZE, gray, pair, write
from PIL import Image
from tiny import one_thread  # noqa: F401

from fastclip.cli import main
from fastclip.transfuse import create_model
from fastclip.transfuse.config.evaluation import EvaluateConfig
from fastclip.transfuse.config.export import ExportConfig
from fastclip.transfuse.config.prediction import PredictConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.synthetic import synthetic_samples
from fastclip.transfuse.measuring.evaluate import evaluate
from fastclip.transfuse.measuring.metrics import METRICS
from fastclip.transfuse.storage.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow  # it trains


def test_both_sizes_are_given_and_named_apart(
    tmp_path: Path, measured: Run, sample: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(*sample, "--csv", tmp_path / "rows.csv")["all"]
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(rows) == 6
    head = capsys.readouterr().out.splitlines()[-10]
    assert head.split() == ["own", "size", "network", "size", "32x48"]
    for size in ("own_size", "network_size"):
        assert list(found[size]) == [
            *("dice", "iou", "accuracy", "precision", "sensitivity", "specificity"),
            *("mae", "hd95", "surface_dice"),
        ]
        for name, interval in found[size].items():
            values = [float(row[f"{name}_{size}"]) for row in rows]
            assert interval["mean"] == pytest.approx(np.mean(values), rel=1e-4)
            assert interval["low"] <= interval["mean"] <= interval["high"]
    # Twice the size, so twice the distances, and not the same figures.
    ratio = found["own_size"]["hd95"]["mean"] / found["network_size"]["hd95"]["mean"]
    assert 1.7 < ratio < 2.3


def test_the_own_size_is_that_of_predict(
    tmp_path: Path, measured: Run, sample: tuple[str, ...]
) -> None:
    """Masks that predict writes score as evaluate says, at the size of the stored masks."""
    measured(*sample, "--csv", tmp_path / "rows.csv", "--threshold", "0.45")
    out = tmp_path / "out"
    command = ["predict", *sample[:2], "--images", str(tmp_path / "set" / "images")]
    assert main([*command, "--out", str(out), "--threshold", "0.45"]) == 0
    for row in csv.DictReader((tmp_path / "rows.csv").open()):
        mask = np.asarray(Image.open(out / f"{row['image']}_mask.png")) > 0
        truth = np.asarray(Image.open(tmp_path / "set" / "masks" / f"{row['image']}.png")) > 0
        assert mask.shape == (2 * SIZE[0], 2 * SIZE[1])
        dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        assert float(row["dice_own_size"]) == pytest.approx(dice, abs=1e-5)


def test_the_tolerance_of_the_surface_dice(measured: Run, sample: tuple[str, ...]) -> None:
    narrow, wide = (
        measured(*sample, "--surface-tolerance", tolerance)["all"]["own_size"]["surface_dice"]
        for tolerance in ("0", "100")
    )
    assert narrow["mean"] < 0.5
    assert wide["mean"] == 1


def test_ignored_pixels_change_no_figure(tmp_path: Path, measured: Run) -> None:
    file = checkpoint(tmp_path / "one.pt")
    found = []
    for name, value in (("a", False), ("b", True)):

        def draw(mask: np.ndarray, value: bool = value) -> Image.Image:
            stored = mask.astype(np.uint8)
            stored[:4, :8] = value
            stored[4:9] = 7
            return Image.fromarray(stored)

        def without(mask: np.ndarray, draw: Any = draw) -> Image.Image:
            stored = np.asarray(draw(mask)).copy()
            stored[:4] = 7
            return Image.fromarray(stored)

        write(tmp_path / name, count=3, draw=without)
        found.append(
            measured(
                *("--checkpoint", file, "--data", tmp_path / name),
                *("--split", "all", "--ignore", "7"),
            )["all"]
        )
    assert found[0] == found[1]


def test_a_model_of_nan_scores_nothing(
    tmp_path: Path, measured: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set", count=2, draw=lambda mask: gray(np.zeros_like(mask)))
    file = checkpoint(tmp_path / "nan.pt")
    content = torch.load(file, weights_only=True)
    content["weights"]["final_2.1.conv.bias"].fill_(float("nan"))
    torch.save(content, file)
    command = ("--checkpoint", file, "--data", tmp_path / "set", "--split", "all")
    measured(*command, code=1)
    assert "case00, case01: the network gives NaN" in capsys.readouterr().err
    measured(*command[:-1], "val", "--threshold-search", code=1)
    good = checkpoint(tmp_path / "good.pt")
    measured("--checkpoint", good, file, *command[2:], code=1)


def test_a_model_of_nan_has_no_validation_score() -> None:
    model = create_model("transfuse_t").eval()
    samples = synthetic_samples(3, (32, 32), seed=0)
    samples.masks.zero_()
    fine = evaluate(model, samples)
    assert fine is not None
    assert 0 <= fine.mae <= 1
    with torch.no_grad():
        model.final_2[1].conv.bias.fill_(float("nan"))
    result = evaluate(model, samples)
    assert result is not None
    for name in ("dice", "iou", "accuracy", "precision", "sensitivity", "specificity", "mae"):
        assert np.isnan(getattr(result, name)), name
    assert result.per_image.dice.isnan().all()


def test_a_threshold_is_searched_on_validation_images_only(
    tmp_path: Path, measured: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set" / "val", count=4)
    write(tmp_path / "set" / "test", count=2)
    file = checkpoint(tmp_path / "one.pt")
    command = ("--checkpoint", file, "--data", tmp_path / "set")
    found = measured(*command, "--threshold-search")
    assert found["threshold_searched"]
    best = found["all"]["own_size"]["dice"]["mean"]
    others = [
        measured(*command, "--threshold", f"{t:.2f}")["all"]["own_size"]["dice"]["mean"]
        for t in (0.1, 0.5, 0.9)
    ]
    assert max(others) <= best + 1e-6
    assert min(others) < best - 0.01
    again = measured(*command, "--threshold", found["threshold"])
    assert again["all"] == found["all"]
    capsys.readouterr()
    for split in ("test", "train", "all"):
        measured(*command, "--threshold-search", "--split", split, code=2)
        assert "chooses on validation images" in capsys.readouterr().err
    measured(*command, "--threshold-search", "--threshold", "0.3", code=2)
    measured(*command, "--threshold-search", "--against", file, code=2)


def test_folds_are_not_validated_on_what_they_were_trained_on(
    tmp_path: Path, measured: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set", count=12)
    one, two = (checkpoint(tmp_path / f"{k}.pt", fold=f"{k}/3") for k in (1, 2))
    data = ("--data", tmp_path / "set")
    own = measured("--checkpoint", one, *data)
    assert 0 < own["all"]["images"] < 12
    capsys.readouterr()
    measured("--checkpoint", one, two, *data, code=2)
    err = capsys.readouterr().err
    assert "2.pt held out other images" in err
    assert "--split test" in err
    measured("--checkpoint", one, *data, "--fold", "2/3", code=2)
    measured("--checkpoint", one, *data, "--against", two, code=2)
    write(tmp_path / "set" / "test", count=2)
    assert measured("--checkpoint", one, two, *data, "--split", "all")["all"]["images"]


def test_slices_of_a_patient_are_drawn_together(tmp_path: Path, measured: Run) -> None:
    write(tmp_path / "set", count=8, stem="p{:02d}")
    file = checkpoint(tmp_path / "one.pt")
    command = ("--checkpoint", file, "--data", tmp_path / "set", "--split", "all")
    assert measured(*command)["all"]["independent"] == 8
    assert measured(*command, "--group-by", "^p0([0-3])?")["all"]["independent"] == 5


def test_json_alone_goes_to_the_standard_output(
    sample: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *sample, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["images"] == 6


def test_saliency_measures_stand_beside_the_others(
    tmp_path: Path, measured: Run, sample: tuple[str, ...]
) -> None:
    pytest.importorskip("py_sod_metrics", reason="needs fastclip-torch[polyp]")
    found = measured(*sample, "--saliency", "--csv", tmp_path / "rows.csv")["all"]["own_size"]
    names = ["weighted_f", "s_measure", "e_measure_mean", "e_measure_max"]
    assert list(found)[-4:] == names
    assert found["e_measure_max"]["mean"] >= found["e_measure_mean"]["mean"]
    again = measured(*sample, "--saliency", "--against", tmp_path / "rows.csv")["difference"]
    assert again["all"]["own_size"]["s_measure"]["p_value"] == 1
    assert measured(*sample, "--saliency", "--ignore", "7", code=2) == {}


def test_images_are_read_as_in_training(tmp_path: Path, measured: Run) -> None:
    """16 bits of which few are used: by the range of the dtype they are nearly black."""

    def deep(array: np.ndarray) -> Image.Image:
        return Image.fromarray(array[..., 0].astype(np.uint16) * 4)

    write(tmp_path / "set", count=4, draw_image=deep)
    found = [
        measured("--data", tmp_path / "set", "--split", "all", *rest)["loss_network_size"]
        for rest in (
            ("--checkpoint", checkpoint(tmp_path / "p.pt", intensity="percentile")),
            ("--checkpoint", checkpoint(tmp_path / "d.pt"), "--intensity", "percentile"),
            ("--checkpoint", checkpoint(tmp_path / "d.pt")),
        )
    ]
    assert found[0] == found[1]
    assert abs(found[0] - found[2]) > 1e-4


def test_flags_of_the_page_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    kinds = (TrainConfig, EvaluateConfig, PredictConfig, ExportConfig)
    known = {name.replace("_", "-") for kind in kinds for name in kind.__dataclass_fields__}
    asked = set(re.findall(r"--([a-z][a-z-]+)", page))
    assert len(asked) > 15
    assert asked <= known
    for metric in METRICS.values():
        assert metric.label.removesuffix(" (px)").split("E-")[0].strip() in page


def test_the_fields_of_a_checkpoint_are_those_of_a_run() -> None:
    """What `checkpoint` stores is a part of what runs store."""
    assert {"data", "model", "size", "fold", "intensity"} <= set(TrainConfig.__dataclass_fields__)
    assert pair(0)[0].shape[:2] == SIZE


@pytest.mark.slow
def test_a_fold_trains_and_is_kept(tmp_path: Path, measured: Run) -> None:
    """The three folds hold out every image once, and each checkpoint knows its own."""
    data = write(tmp_path / "set", count=15)
    command = ["train", "--data", str(data), "--model", "transfuse_t", "--size", "32x48"]
    command += ["--batch-size", "4", "--max-steps", "1"]
    held_out = []
    for k in (1, 2, 3):
        out = tmp_path / str(k)
        assert main([*command, "--fold", f"{k}/3", "--out", str(out)]) == 0
        sides = {row["image"]: row["split"] for row in csv.DictReader((out / "split.csv").open())}
        held_out.append({name for name, side in sides.items() if side == "val"})
        assert len(sides) == 15
        assert load_checkpoint(out / "best.pt")["config"]["fold"] == f"{k}/3"
        found = measured("--checkpoint", out / "best.pt", "--data", data)
        assert {row["image"] for row in found["per_image"]} == held_out[-1]
    assert set.union(*held_out) == set(sides)
    assert sum(map(len, held_out)) == 15
