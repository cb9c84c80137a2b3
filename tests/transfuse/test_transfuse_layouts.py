"""Every public layout, built small: its pairs are found as they lie, and a step trains on it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import needs_train  # noqa: F401
import numpy as np
import pytest
from pairs import SIZE, gray, pair, truths, write
from PIL import Image

from fastclip.transfuse.config.preparation import InfoConfig
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data import DataError, load_split
from fastclip.transfuse.data.layouts import find
from fastclip.transfuse.data.options import ReadOptions
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


@pytest.mark.parametrize("header", ["image,mask,split\n", ""])
def test_a_list_of_pairs(tmp_path: Path, header: str) -> None:
    write(tmp_path, "a/{}.jpg", "b/{}.png")
    names = [f"case{i:02d}" for i in range(4)]
    sides = ("train", "train", "validation", "test")
    lines = [f"a/{n}.jpg,b/{n}.png,{s}" for n, s in zip(names, sides, strict=True)]
    (tmp_path / "pairs.csv").write_text(header + "\n".join(lines))
    assert load_split(str(tmp_path / "pairs.csv"), "train", SIZE).names == names[:2]
    assert load_split(str(tmp_path / "pairs.csv"), "val", SIZE).names == names[2:3]
    (tmp_path / "pairs.txt").write_text("\n".join(f"a/{n}.jpg b/{n}.png" for n in names))
    assert len(load_split(str(tmp_path / "pairs.txt"), "all", SIZE)) == 4
    (tmp_path / "bad.csv").write_text("a/x.jpg,b/x.png\nonly\na/y.jpg,b/y.png,holdout\n")
    with pytest.raises(DataError, match=r"line 2: expected image,mask.*line 3: split 'holdout'"):
        load_split(str(tmp_path / "bad.csv"), "all", SIZE)


def test_a_coco_json(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    write(tmp_path, mask=None, count=2)
    square = [10, 5, 30, 5, 30, 25, 10, 25]
    content = {
        "images": [
            {"id": i, "file_name": f"case{i:02d}.png", "height": SIZE[0], "width": SIZE[1]}
            for i in range(2)
        ],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 0,
                "category_id": 7,
                "iscrowd": 0,
                "segmentation": [square],
                "area": 400,
                "bbox": [10, 5, 20, 20],
            }
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    samples = load_split(str(file), "all", SIZE)
    assert samples.masks[0, 0, 5:25, 10:30].float().mean() > 250
    assert int((samples.masks[0] > 0).sum()) == 400
    assert not samples.masks[1].any()
    content["categories"].append({"id": 9, "name": "other"})  # type: ignore[attr-defined]
    file.write_text(json.dumps(content))
    os.utime(file, (1, 1))
    with pytest.raises(DataError, match="several classes: say --classes N"):
        load_split(str(file), "all", SIZE)


def test_several_folders_keep_their_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name)
    samples = load_split([str(tmp_path / "one"), str(tmp_path / "two")], "all", SIZE)
    assert samples.names[0] == "one/case00"
    assert len(samples) == 8
    assert samples.source == "one+two all"
    with pytest.raises(DataError, match="more than once"):
        load_split([str(tmp_path / "one")] * 2, "all", SIZE)


def test_what_lies_beside_is_counted(tmp_path: Path) -> None:
    isic_2017(tmp_path)
    notes = load_split(str(tmp_path), "train", SIZE).notes
    assert any("*_superpixels" in note and ".csv" in note for note in notes)


def test_two_folders_of_masks_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, mask="labels/{}.png")
    with pytest.raises(DataError, match="holds labels and masks: which of them"):
        find(str(tmp_path))


def test_no_known_layout_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "photos/{}.png", "outlines/{}.png")
    with pytest.raises(
        DataError, match=r"2 folders: outlines, photos.*expected images/ and masks/"
    ):
        find(str(tmp_path))


def test_all_bad_files_come_in_one_error_or_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, count=8)
    (tmp_path / "images" / "case00.png").write_bytes(b"")
    (tmp_path / "masks" / "case01.png").write_text("x")
    (tmp_path / "masks" / "case02.png").unlink()
    (tmp_path / "images" / "case03.png").unlink()
    (tmp_path / "images" / "case04.png").unlink()
    (tmp_path / "images" / "case04.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(DataError, match="5 problems") as error:
        load_split(str(tmp_path), "all", SIZE)
    for name in ("case00", "case01", "case02", "case03", "case04"):
        assert name in str(error.value)
    assert "--skip-bad" in str(error.value)
    for cache in (None, tmp_path / "cache"):
        options = ReadOptions(skip_bad=True, cache=cache)
        samples = load_split(str(tmp_path), "all", SIZE, options=options)
        assert samples.names == ["case05", "case06", "case07"]
        assert np.array_equal(samples.masks[:, 0].numpy() > 127, truths(3, 5))
        assert len(samples.left_out) == 5
    info = InfoConfig(data=str(tmp_path), sheet=tmp_path / "sheet.png")
    assert run_info(info) == 1


def test_sides_do_not_move_when_pairs_come_or_go(tmp_path: Path) -> None:
    write(tmp_path, count=60)

    def sides(**options: object) -> dict[str, set[str]]:
        how = ReadOptions(**options)  # type: ignore[arg-type]
        return {
            split: set(load_split(str(tmp_path), split, SIZE, val_fraction=0.2, options=how).names)
            for split in ("train", "val")
        }

    before = sides()
    assert 5 <= len(before["val"]) <= 20
    folds = [sides(fold=(k, 3))["val"] for k in (1, 2, 3)]
    assert sum(map(len, folds)) == len(set.union(*folds)) == 60
    write(tmp_path, count=20, first=60)
    after = sides()
    assert before["train"] <= after["train"]
    assert before["val"] <= after["val"]


def test_images_of_one_patient_stay_together(tmp_path: Path) -> None:
    for patient in range(12):
        write(tmp_path, count=4, stem=f"p{patient:02d}_{{}}")
    how = ReadOptions(group_by=r"^(p\d+)_")
    train, val = (
        {
            n.split("_")[0]
            for n in load_split(str(tmp_path), s, SIZE, val_fraction=0.3, options=how).names
        }
        for s in ("train", "val")
    )
    assert val
    assert not train & val
    with pytest.raises(DataError, match=r"matches nothing in 48 names: p00_0"):
        load_split(str(tmp_path), "val", SIZE, options=ReadOptions(group_by="patient"))
    with pytest.raises(DataError, match="no regular expression"):
        load_split(str(tmp_path), "val", SIZE, options=ReadOptions(group_by="("))


READER = """
import sys
from pathlib import Path
from fastclip.transfuse.data import load_split
from fastclip.transfuse.data.options import ReadOptions

folder, cache, barrier = map(Path, sys.argv[1:4])
(barrier / sys.argv[4]).touch()
while len(list(barrier.iterdir())) < 2:
    pass
for size in range(16, 80, 16):
    samples = load_split(str(folder), "all", (size, size), options=ReadOptions(cache=cache))
    print(int(samples.images.long().sum()), int(samples.masks.long().sum()))
"""


@pytest.mark.slow
def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    write(tmp_path / "set")
    (tmp_path / "barrier").mkdir()
    places = [str(tmp_path / name) for name in ("set", "cache", "barrier")]
    command = [sys.executable, "-c", READER, *places]
    both = [
        subprocess.Popen(
            [*command, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0] != ""
    entries = list((tmp_path / "cache").iterdir())
    assert len(entries) == 4  # one a size, and nothing half made beside them
    for size in range(16, 80, 16):
        plain = load_split(str(tmp_path / "set"), "all", (size, size))
        assert f"{int(plain.images.long().sum())} " in results[0][0]


def test_the_cache_is_keyed_by_content_and_size(tmp_path: Path) -> None:
    write(tmp_path / "set")
    cache = tmp_path / "cache"
    options = ReadOptions(cache=cache)

    def load(size: tuple[int, int] = SIZE) -> np.ndarray:
        return load_split(str(tmp_path / "set"), "all", size, options=options).masks.numpy()

    first = load()
    assert np.array_equal(first[:, 0] > 0, truths())
    (entry,) = cache.iterdir()
    stamp = (entry / "images.npy").stat().st_mtime_ns
    assert np.array_equal(load(), first)
    assert (entry / "images.npy").stat().st_mtime_ns == stamp
    assert load((16, 16)).shape == (4, 1, 16, 16)
    gray(~pair(0)[1]).save(tmp_path / "set" / "masks" / "case00.png")
    assert np.array_equal(load()[0, 0] > 0, ~pair(0)[1])
    assert len(list(cache.iterdir())) == 3
    (tmp_path / "file").write_text("")
    options = ReadOptions(cache=tmp_path / "file")
    with pytest.raises(DataError, match="--cache"):
        load()


def test_names_that_are_not_utf8_are_written_readably(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/d\xe9r"
    for folder, pixels in ((b"/images", pair(0)[0]), (b"/masks", pair(0)[1] * np.uint8(255))):
        os.makedirs(root + folder)
        with open(root + folder + b"/caf\xe9.png", "wb") as out:
            Image.fromarray(pixels).save(out, format="PNG")
    samples = load_split(os.fsdecode(root), "all", SIZE)
    assert samples.names == ["caf\\xe9"]
    assert samples.source == "d\\xe9r all"
    csv.writer((tmp_path / "x.csv").open("w", encoding="utf-8")).writerow(samples.names)


@pytest.mark.skipif("FASTCLIP_DATA" not in os.environ, reason="FASTCLIP_DATA names no data")
def test_info_on_real_lesions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = os.environ["FASTCLIP_DATA"]
    assert run_info(InfoConfig(data=data, sheet=tmp_path / "sheet.png")) == 0
    assert "object on" in capsys.readouterr().out
