"""Every public layout, built small: its pairs are found as they lie, and a step trains on it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import needs_train  # noqa: F401
import numpy as np
import pytest
from pairs import SIZE, gray, pair, truths, write
from PIL import Image

from fastclip.transfuse.config.preparation import InfoConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data import load_split
from fastclip.transfuse.data.layouts import find
from fastclip.transfuse.preparation.info import run_info
from fastclip.transfuse.training.trainer import Trainer

Split = dict[str | None, int]


def plain(root: Path) -> Split:
    write(root)
    return {None: 4}


def with_splits(root: Path) -> Split:
    write(root / "train", "imgs/{}.jpg", "annotations/{}.png")
    write(root / "valid", "Images/{}.png", "GT/{}.png", count=2)
    write(root / "testing", "img/{}.png", "ground_truth/{}.png", count=1)
    return {"train": 4, "val": 2, "test": 1}


def splits_inside(root: Path) -> Split:
    write(root, "images/training/{}.jpg", "labels/training/{}_label.png")
    write(root, "images/validation/{}.jpg", "labels/validation/{}_label.png", count=2)
    return {"train": 4, "val": 2}


def isic_2017(root: Path) -> Split:
    stem = "ISIC_{:07d}"
    for part, count in (("Training", 4), ("Validation", 2), ("Test_v2", 1)):
        masks = f"ISIC-2017_{part}_Part1_GroundTruth/{{}}_segmentation.png"
        images = f"ISIC-2017_{part}_Data/{{}}.jpg"
        write(root, images, masks, count=count, stem=stem)
        write(root, images.replace(".jpg", "_superpixels.png"), None, count=count, stem=stem)
        (root / f"ISIC-2017_{part}_Data" / "metadata.csv").write_text("a,b")
    return {"train": 4, "val": 2, "test": 1}


def isic_2018(root: Path) -> Split:
    for part, count in (("Training", 4), ("Validation", 2)):
        masks = f"ISIC2018_Task1_{part}_GroundTruth/{{}}_segmentation.png"
        write(root, f"ISIC2018_Task1-2_{part}_Input/{{}}.jpg", masks, count=count)
    return {"train": 4, "val": 2}


def kvasir(root: Path) -> Split:
    write(root / "Kvasir-SEG", "images/{}.jpg", "masks/{}.jpg")
    (root / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}")
    return {None: 4}


def cvc_clinicdb(root: Path) -> Split:
    write(root, "Original/{}.tif", "Ground Truth/{}.tif", stem="{}")
    return {None: 4}


def pranet(root: Path) -> Split:
    write(root / "TrainDataset", "image/{}.png", "masks/{}.png")
    for name in ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS", "Kvasir"):
        write(root / "TestDataset" / name, count=2)
    return {"train": 4, "test": 10}


def drive(root: Path) -> Split:
    for part, split in (("training", "training"), ("test", "test")):
        images, masks = f"{part}/images/{{}}_{split}.tif", f"{part}/1st_manual/{{}}_manual1.gif"
        write(root, images, masks, stem="{:02d}")
        write(root, f"{part}/mask/{{}}_{split}_mask.gif", None, stem="{:02d}")
    return {"train": 4, "test": 4}


def chase(root: Path) -> Split:
    write(root, "{}.jpg", "{}_1stHO.png", stem="Image_{:02d}L")
    write(
        root, "{}_2ndHO.png", None, draw_image=lambda a: gray(a[..., 0] < 99), stem="Image_{:02d}L"
    )
    return {None: 4}


def camvid(root: Path) -> Split:
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        write(root, f"{part}/{{}}.png", f"{part}annot/{{}}.png", count=count)
    (root / "train.txt").write_text("list")
    return {"train": 4, "val": 2, "test": 1}


def nuclei(root: Path) -> Split:
    for row in range(4):
        image, mask = pair(row)
        folder = root / "stage1_train" / f"id{row}"
        for name, pixels in (
            (f"images/id{row}.png", Image.fromarray(image)),
            ("masks/a.png", gray(mask & (np.arange(48) < 16))),
            ("masks/b.png", gray(mask & (np.arange(48) >= 16))),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels.save(folder / name)
    return {"train": 4}


def flat(root: Path) -> Split:
    write(root, "{}.jpg", "{}_mask.png")
    (root / "notes.txt").write_text("x")
    write(root, "{}_thumb.jpg", None)
    return {None: 4}


def flat_with_prefix(root: Path) -> Split:
    write(root, "{}.jpg", "mask_{}.png")
    return {None: 4}


def arrays(root: Path) -> Split:
    root.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 4), ("val", 2)):
        pairs = [pair(row) for row in range(count)]
        np.save(root / f"data_{split}.npy", np.stack([image for image, _ in pairs]))
        np.save(root / f"mask_{split}.npy", np.stack([m for _, m in pairs]) * np.uint8(255))
    return {"train": 4, "val": 2}


def several_sets(root: Path) -> Split:
    write(root / "clinic")
    write(root / "kvasir", count=2)
    return {None: 6}


def patients(root: Path) -> Split:
    for first, name in ((0, "p1"), (2, "p2")):
        write(root, f"images/{name}/{{}}.png", f"masks/{name}/{{}}.png", count=2, first=first)
    return {None: 4}


LAYOUTS: list[Callable[[Path], Split]] = [
    *(plain, with_splits, splits_inside, isic_2017, isic_2018, kvasir, cvc_clinicdb, pranet),
    *(drive, chase, camvid, nuclei, flat, flat_with_prefix, arrays, several_sets, patients),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_the_pairs_are_found_as_they_lie(
    tmp_path: Path, layout: Callable[[Path], Split], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = layout(tmp_path)
    found = find(str(tmp_path))
    assert found.problems == []
    counts: Split = {}
    for item in found.items:
        counts[item.split] = counts.get(item.split, 0) + 1
    assert counts == expected
    assert len({item.name for item in found.items if item.split != "val"}) >= 4
    split = "train" if "train" in expected else "all"
    samples = load_split(str(tmp_path), split, SIZE)
    assert np.array_equal(samples.masks[:4, 0].numpy() > 127, truths())
    assert samples.images[:, :, 14:18, 16].float().mean() < 95
    sheet = tmp_path / "sheet.png"
    assert run_info(InfoConfig(data=str(tmp_path), sheet=sheet)) == 0
    out = capsys.readouterr().out
    assert found.layout in out
    assert "masks: " in out
    assert np.asarray(Image.open(sheet)).shape[1] == 4 * 256


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_a_step_trains_on_it(tmp_path: Path, layout: Callable[[Path], Split]) -> None:
    layout(tmp_path / "set")
    config = TrainConfig(
        data=str(tmp_path / "set"),
        model="transfuse_t",
        size="32x32",
        out=tmp_path / "run",
        batch_size=2,
        max_steps=1,
        val_fraction=0.3,
        device="cpu",
    )
    assert Trainer(config).fit() == 0
    sides = list(csv.DictReader((tmp_path / "run" / "split.csv").open()))
    assert {row["split"] for row in sides} == {"train", "val"}


@pytest.mark.parametrize(
    ("folder", "masks"),
    [
        *(("images", "masks"), ("image", "mask"), ("imgs", "labels"), ("img", "label")),
        *(("Images", "annotations"), ("images", "gt"), ("images", "GT"), ("images", "imagesannot")),
        *(("images", "ground_truth"), ("images", "1st_manual")),
    ],
)
def test_names_of_folders(tmp_path: Path, folder: str, masks: str) -> None:
    write(tmp_path, f"{folder}/{{}}.png", f"{masks}/{{}}.png")
    assert len(find(str(tmp_path)).items) == 4


@pytest.mark.parametrize(
    "mask",
    [
        *("{}_segmentation", "{}_mask", "{}-mask", "{}_Mask", "{}_manual1", "{}_gt", "{}_label"),
        *("{}_lesion", "{}_matte", "{}_1stHO", "mask_{}"),
    ],
)
def test_names_of_masks(tmp_path: Path, mask: str) -> None:
    write(tmp_path / "two", mask=f"masks/{mask}.png")
    assert len(find(str(tmp_path / "two")).items) == 4
    write(tmp_path / "one", "{}.jpg", f"{mask}.png")
    assert len(find(str(tmp_path / "one")).items) == 4


@pytest.mark.skipif("FASTCLIP_DATA" not in os.environ, reason="FASTCLIP_DATA names no data")
def test_info_on_real_lesions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = os.environ["FASTCLIP_DATA"]
    assert run_info(InfoConfig(data=data, sheet=tmp_path / "sheet.png")) == 0
    assert "object on" in capsys.readouterr().out
