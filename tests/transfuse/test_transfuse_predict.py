"""Predict: any images, any checkpoint; one bad file stops no other, and results stay results."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from pairs import SIZE, pair, write
from PIL import Image
from tiny import one_thread  # noqa: F401

from fastclip.cli import main
from fastclip.transfuse import create_model
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.prediction.ensemble import Ensemble, Member
from fastclip.transfuse.prediction.predict import predict_probabilities
from fastclip.transfuse.storage.checkpoint import FORMAT, CheckpointError, load_model
from fastclip.transfuse.storage.files import write_file

pytestmark = pytest.mark.slow  # it trains first


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "t.pth"
    torch.save(create_model("transfuse_t").state_dict(), file)
    return file


@pytest.fixture
def predict(weights: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*images: object, out: Path = tmp_path / "out", **options: str | None) -> int:
        flags = [f"--{k.replace('_', '-')}" for k in options]
        pairs = [part for f, v in zip(flags, options.values(), strict=True) for part in (f, v)]
        names = [str(image) for image in images]
        command = ["predict", "--checkpoint", str(weights), "--images", *names, "--out", str(out)]
        return main([*command, *(part for part in pairs if part is not None)])

    return run


def results(out: Path) -> list[str]:
    return sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())


def test_files_folders_patterns_and_lists(tmp_path: Path, predict: Callable[..., int]) -> None:
    images = write(tmp_path / "set", count=3) / "images"
    (tmp_path / "list.txt").write_text("set/images/case00.png\nset/images/case02.png\n")
    for number, (asked, count) in enumerate(
        [
            ([images], 3),
            ([images / "case01.png"], 1),
            ([images / "*.png"], 3),
            ([tmp_path / "list.txt"], 2),
            ([images / "case00.png", images / "case01.png"], 2),
        ]
    ):
        out = tmp_path / f"out{number}"
        assert predict(*asked, out=out) == 0
        assert len(results(out)) == 2 * count
        mask = np.asarray(Image.open(next(out.glob("*_mask.png"))))
        assert mask.shape == SIZE
        assert set(np.unique(mask)) <= {0, 255}


def test_one_bad_file_is_named_and_the_others_are_done(
    tmp_path: Path, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path / "set", count=3) / "images"
    (images / "a.png").write_text("x")
    (images / "notes.txt").write_text("x")
    (images / "b.tif").symlink_to("absent")
    assert predict(images) == 1
    done = capsys.readouterr()
    assert "a.png cannot be read" in done.err
    assert "b.tif cannot be read" in done.err
    assert "1 .txt" in done.out
    assert len(results(tmp_path / "out")) == 6


def test_results_are_no_images(tmp_path: Path, predict: Callable[..., int]) -> None:
    images = write(tmp_path / "set", count=2) / "images"
    assert predict(images, out=images) == 2
    assert results(images) == ["case00.png", "case01.png"]
    for _ in range(2):
        assert predict(images, out=images / "out", recursive=None) == 0
    assert len(results(images / "out")) == 4
    (tmp_path / "link").symlink_to(images)
    assert predict(images, out=tmp_path / "link") == 2


def test_one_name_in_two_folders_is_kept_apart(
    tmp_path: Path, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        write(tmp_path / "set" / name, "{}.png", None, count=1)
    assert predict(tmp_path / "set", recursive=None, save="masks") == 0
    assert results(tmp_path / "out") == ["one/case00_mask.png", "two/case00_mask.png"]
    assert predict(tmp_path / "set", out=tmp_path / "flat") == 2
    assert "--recursive" in capsys.readouterr().err
    write(tmp_path / "set" / "one", "{}.jpg", None, count=1)
    assert predict(tmp_path / "set" / "one", out=tmp_path / "twins") == 2
    assert "case00.jpg and" in capsys.readouterr().err


def test_earlier_results_stay(
    tmp_path: Path, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path / "set", count=2) / "images"
    assert predict(images) == 0
    mask = tmp_path / "out" / "case00_mask.png"
    mask.write_text("mine")
    assert predict(images) == 0
    assert "2 kept as they were: --overwrite" in capsys.readouterr().out
    assert mask.read_text() == "mine"
    assert predict(images, overwrite=None) == 0
    assert np.asarray(Image.open(mask)).shape == SIZE


def test_probabilities_and_flips(
    tmp_path: Path, predict: Callable[..., int], weights: Path
) -> None:
    images = write(tmp_path / "set", count=3) / "images"
    assert predict(images, save="probabilities", tta="flips", batch_size="2") == 0
    stored = np.asarray(Image.open(tmp_path / "out" / "case00_prob.png"))
    assert stored.dtype == np.uint16
    model, _ = load_model(weights)
    image = pair(0)[0]
    flips = Ensemble([Member(model, (96, 128))], "flips")
    (flipped,) = predict_probabilities(flips, [image])
    assert np.abs(stored / 65535 - flipped[0]).max() < 1e-3
    (mirrored,) = predict_probabilities(flips, [image[:, ::-1].copy()])
    assert np.abs(mirrored[..., ::-1] - flipped).max() < 1e-4
    (single,) = predict_probabilities(Ensemble([Member(model, (96, 128))]), [image])
    assert np.abs(single - flipped).max() > 1e-4


def test_images_are_read_as_in_training(tmp_path: Path, predict: Callable[..., int]) -> None:
    write(tmp_path / "a", count=1, image="{}.png", mask=None)
    deep = {"draw_image": lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 257)}
    write(tmp_path / "b", count=1, image="{}.png", mask=None, **deep)
    write(tmp_path / "c", count=1, image="{}.gif", mask=None)
    found = []
    for name in "abc":
        assert predict(tmp_path / name, out=tmp_path / f"out_{name}", save="probabilities") == 0
        found.append(np.asarray(Image.open(tmp_path / f"out_{name}" / "case00_prob.png")) / 65535)
    assert np.abs(found[0] - found[1]).max() < 0.01
    assert np.abs(found[0] - found[2]).max() < 0.05


WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda s: s,
    "DataParallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "both": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "compiled part": lambda s: {
        k.replace("transformer.", "transformer._orig_mod."): v for k, v in s.items()
    },
    "Lightning": lambda s: {
        "epoch": 3,
        "state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.weight": torch.ones(2)},
    },
    "nested": lambda s: {"model_state_dict": s, "optimizer": {}},
    "own, compiled": lambda s: {
        "format": FORMAT,
        "model": "transfuse_t",
        "weights": {f"_orig_mod.{k}": v for k, v in s.items()},
        "config": {"size": None},
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_from_anywhere_load(tmp_path: Path, weights: Path, kind: str) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save(WRAPPED[kind](state), tmp_path / "x.ckpt")
    model, content = load_model(tmp_path / "x.ckpt")
    assert content["model"] == "transfuse_t"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_weights_in_a_safetensors_file_load(tmp_path: Path, weights: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = torch.load(weights, weights_only=True)
    safetensors.save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "x.safetensors")
    model, _ = load_model(tmp_path / "x.safetensors")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    (tmp_path / "x.safetensors").write_bytes(b"not a header")
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load_model(tmp_path / "x.safetensors")


OTHER: dict[str, tuple[Any, str]] = {
    "no config": ({"format": FORMAT, "model": "transfuse_t", "weights": None}, "lacks config"),
    "no weights": ({"format": FORMAT, "model": "transfuse_t", "config": {}}, "lacks weights"),
    "unknown": ({"format": FORMAT, "model": "x", "weights": {}, "config": {}}, "names 'x'"),
    "another network": ({"conv1.weight": torch.ones(2)}, "no TransFuse.*holds conv1.weight"),
    "a list": ([1, 2], "holds a list"),
    "a tensor": (torch.ones(2), "holds a Tensor"),
    "nothing": ({}, "holds nothing"),
    "a number": ({"state_dict": 7}, "holds state_dict"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_anything_else_is_one_sentence(tmp_path: Path, weights: Path, kind: str) -> None:
    content, message = OTHER[kind]
    if isinstance(content, dict) and "weights" in content and content["weights"] is None:
        content = {**content, "weights": torch.load(weights, weights_only=True)}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"x\.pt.*{message}"):
        load_model(tmp_path / "x.pt")


def test_an_unknown_grid_needs_the_name(tmp_path: Path, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["transformer.pos_embed"] = torch.zeros(1, 7, 192)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"shape \(1, 7, 192\).*--model"):
        load_model(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="does not fit transfuse_t"):
        load_model(tmp_path / "x.pt", "transfuse_t")


def test_a_file_beside_is_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (tmp_path / ".x.pt.part").symlink_to(victim)
    names = []

    def write_it(stream: Any) -> None:
        names.append(Path(stream.name).name)
        stream.write(b"new")

    for _ in range(2):
        write_file(tmp_path / "x.pt", write_it)
    assert victim.read_text() == "keep"
    assert (tmp_path / ".x.pt.part").is_symlink()
    assert (tmp_path / "x.pt").read_bytes() == b"new"
    assert len(set(names)) == 2
    assert all(str(os.getpid()) in name for name in names)
    (tmp_path / "x.pt").unlink()
    (tmp_path / "x.pt").symlink_to(victim)
    write_file(tmp_path / "x.pt", write_it)
    assert victim.read_text() == "keep"
    with pytest.raises(RunError, match="cannot write"):
        write_file(tmp_path / "absent" / "x", write_it)


def test_classes_are_predicted_as_numbers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.save(create_model("transfuse_t", 3).state_dict(), tmp_path / "c.pth")
    images = write(tmp_path / "set", count=1) / "images"
    command = ["predict", "--checkpoint", str(tmp_path / "c.pth"), "--images", str(images)]
    command += ["--out", str(tmp_path / "out"), "--save", "masks", "probabilities", "overlays"]
    assert main([*command, "--threshold", "0.3"]) == 0
    assert len(results(tmp_path / "out")) == 5
    mask = np.asarray(Image.open(tmp_path / "out" / "case00_mask.png"))
    maps = [
        np.asarray(Image.open(tmp_path / "out" / f"case00_class{n}_prob.png")) / 65535
        for n in (1, 2, 3)
    ]
    best = np.argmax(maps, 0) + 1
    assert np.array_equal(mask, np.where(np.max(maps, 0) >= 0.3, best, 0))
