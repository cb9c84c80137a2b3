"""Exported files: they give what the network gives, at any size, and say how to use them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from pairs import pair
from PIL import Image

from fastclip.cli import main
from fastclip.transfuse import create_model
from fastclip.transfuse.export import command, formats
from fastclip.transfuse.export.program import Segmenter, capture, largest_difference
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.normalise import MEAN, STD, normalise
from fastclip.transfuse.prediction.predict import predict_mask

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"


@pytest.fixture(scope="module")
def model() -> TransFuse:
    """Its batch norms have seen images, so that its maps are not flat."""
    torch.manual_seed(0)
    network = create_model("transfuse_t", 1).train()
    images = torch.stack([torch.from_numpy(pair(k)[0]).permute(2, 0, 1) for k in range(8)])
    with torch.no_grad():
        for _ in range(10):
            network(normalise(images))
    return network.eval()


@pytest.fixture(scope="module")
def weights(model: TransFuse, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "t.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def onnx_file(weights: Path) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs fastclip-torch[export]")
    file = weights.with_suffix(".onnx")
    arguments = ["export", str(weights), "--size", "32x48", "--threshold", "0.4"]
    assert main([*arguments, "--format", "onnx", "--class-names", "lesion"]) == 0
    return file


@pytest.mark.slow
def test_onnx_runs_at_any_size_and_batch(onnx_file: Path, model: TransFuse) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["size"]) == [32, 48]
    assert json.loads(about["mean"]) == list(MEAN)
    assert json.loads(about["std"]) == list(STD)
    assert json.loads(about["threshold"]) == 0.4
    assert json.loads(about["class_names"]) == ["lesion"]
    for shape in ((1, 3, 96, 128), (2, 3, 32, 32), (5, 3, 64, 48), (1, 3, 208, 176)):
        images = torch.randn(shape)
        (found,) = session.run(["probabilities"], {"images": images.numpy()})
        with torch.no_grad():
            expected = model(images)[2].sigmoid().numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5
        assert np.ptp(expected) > 0.01


@pytest.mark.slow
def test_torch_export_runs_at_any_size_and_batch(
    tmp_path: Path, weights: Path, model: TransFuse, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "net.pt2"
    arguments = ["export", str(weights), "--format", "torch", "--out", str(file)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(r"net\.pt2, .* MB: on three sizes at most \S+e\S+ from", said)
    extra = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=extra)
    assert json.loads(extra["metadata.json"])["size"] == [96, 128]
    assert json.loads(extra["metadata.json"])["class_names"] == ["object"]
    for shape in ((1, 3, 96, 128), (3, 3, 32, 64)):
        images = torch.randn(shape)
        with torch.no_grad():
            assert torch.allclose(program.module()(images), model(images)[2].sigmoid(), atol=1e-6)
    assert main(arguments) == 2
    assert "is there already: --overwrite replaces it" in capsys.readouterr().err


@pytest.fixture
def exported_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the command a file that runs as it is told; nothing is captured or loaded."""

    def set_up(run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        monkeypatch.setattr(command, "capture", lambda model: None)
        monkeypatch.setattr(formats, "torch_bytes", lambda program, metadata: b"content")
        monkeypatch.setattr(formats, "run_torch", lambda content: run)

    return set_up


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "off": lambda found: found + 0.01,
    "nan": lambda found: found * float("nan"),
    "shape": lambda found: found[:, :, :1],
}


@pytest.mark.parametrize("kind", [*WRONG, "right"])
def test_a_file_that_differs_is_not_written(
    tmp_path: Path,
    weights: Path,
    model: TransFuse,
    exported_as: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    @torch.no_grad()
    def run(images: torch.Tensor) -> torch.Tensor:
        return WRONG.get(kind, lambda found: found)(model(images)[2].sigmoid())

    exported_as(run)
    file = tmp_path / "x.pt2"
    code = main(
        ["export", str(weights), "--format", "torch", "--size", "32x48", "--out", str(file)]
    )
    assert code == (0 if kind == "right" else 1)
    assert file.exists() == (kind == "right")
    assert ("is not written" in capsys.readouterr().err) == (kind != "right")


def test_a_network_of_nan_is_not_exported(
    tmp_path: Path, exported_as: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    exported_as(lambda images: images[:, :1])
    network = create_model("transfuse_t")
    with torch.no_grad():
        network.final_2[1].conv.bias.fill_(float("nan"))
    torch.save(network.state_dict(), tmp_path / "nan.pth")
    assert main(["export", str(tmp_path / "nan.pth"), "--format", "torch"]) == 1
    assert "NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "nan.pt2").exists()


def test_wrong_arguments(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (("--class-names", "a", "b"), "--class-names must be 1 different ones, got a, b"),
        (("--threshold", "1"), "--threshold must be between 0 and 1, got 1.0"),
        (("--size", "33x32"), "33x32"),
    ):
        assert main(["export", str(weights), "--format", "torch", *flags]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(tmp_path / "absent.pt"), "--format", "torch"]) == 2


def test_without_onnx_one_sentence_says_what_to_install(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(weights), "--out", "never.onnx"]) == 1
    err = capsys.readouterr().err
    assert "--format onnx needs onnx: pip install 'fastclip-torch[export]'" in err
    assert formats.run_onnx(b"") is None


@pytest.mark.slow
def test_every_published_network_has_a_graph() -> None:
    for name, size in (("transfuse_s", (192, 256)), ("transfuse_l", (192, 256))):
        segmenter = Segmenter(create_model(name, 2))
        module = capture(segmenter).module()
        assert largest_difference(segmenter, module, size) < 1e-6


@pytest.fixture
def served(onnx_file: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(onnx_file), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving lesion masks on port ")
        yield f"http://localhost:{line.split()[-1]}"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_example_serves_the_masks_that_predict_writes(served: str, model: TransFuse) -> None:
    image = pair(2)[0].repeat(3, 0).repeat(2, 1)  # 96x96
    posted = io.BytesIO()
    Image.fromarray(image).save(posted, "PNG")
    with urllib.request.urlopen(served, posted.getvalue(), timeout=60) as answer:
        mask = np.asarray(Image.open(io.BytesIO(answer.read())))
    expected = predict_mask(model, image, (32, 48), threshold=0.4)
    assert mask.shape == expected.shape
    assert (mask != expected).mean() < 0.02  # it enlarges probabilities, predict logits
    assert 0 < mask.mean() < 1
