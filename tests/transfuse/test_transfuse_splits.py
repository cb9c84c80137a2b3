"""Lists, several folders, what lies beside, and which side of a split a pair is on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import needs_train  # noqa: F401
import numpy as np
import pytest
from pairs import SIZE, truths, write

from fastclip.transfuse.config.preparation import InfoConfig
from fastclip.transfuse.data import DataError, load_split
from fastclip.transfuse.data.layouts import find
from fastclip.transfuse.data.options import ReadOptions
from fastclip.transfuse.preparation.info import run_info


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
    write(tmp_path)
    write(tmp_path, "images/{}_superpixels.png", None)
    (tmp_path / "images" / "metadata.csv").write_text("a,b")
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
