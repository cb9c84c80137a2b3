"""Ensembles: means of probabilities over checkpoints and views."""

from __future__ import annotations

from pathlib import Path

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pairs import SIZE, write
from PIL import Image
from tiny import one_thread  # noqa: F401

from fastclip.cli import main
from fastclip.transfuse import create_model
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.prediction.ensemble import Ensemble, Member, mean_probability
from fastclip.transfuse.prediction.predict import predict_mask, predict_probabilities


@pytest.fixture(scope="module")
def models() -> list[TransFuse]:
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(create_model("transfuse_t").eval())
    return made


def images(count: int = 2, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_several_networks_give_the_mean_of_their_probabilities(models: list[TransFuse]) -> None:
    batch = images()
    views = Ensemble([Member(m, (32, 48)) for m in models]).logits({(32, 48): batch})
    found = mean_probability([view[1] for view in views], (32, 48))
    each = [m(normalise(batch))[2][1].sigmoid() for m in models]
    assert torch.allclose(found, (each[0] + each[1]) / 2, atol=1e-5)
    assert not torch.allclose(found, each[0], atol=1e-3)


@torch.no_grad()
def test_networks_of_two_sizes_see_each_their_own(models: list[TransFuse]) -> None:
    ensemble = Ensemble([Member(models[0], (32, 48)), Member(models[1], (48, 64))])
    assert ensemble.sizes == [(32, 48), (48, 64)]
    small, large = images(1), images(1, (48, 64))
    views = ensemble.logits({(32, 48): small, (48, 64): large})
    assert [view.shape[-2:] for view in views] == [(32, 48), (48, 64)]
    alone = models[1](normalise(large))[2]
    assert torch.allclose(views[1], alone, atol=1e-5)


@torch.no_grad()
def test_flips_and_scales_are_every_view(models: list[TransFuse]) -> None:
    batch = images(1)
    ensemble = Ensemble([Member(models[0], (32, 48))], "flips+scales", (0.5, 1.0))
    views = ensemble.logits({(32, 48): batch})
    # 0.5 times 48 is 24, whose nearest multiple of 16 is 32 (ties go to the even multiple).
    assert [tuple(view.shape[-2:]) for view in views] == [(16, 32)] * 4 + [(32, 48)] * 4
    turned = models[0](normalise(batch).flip(3))[2].flip(3)
    assert torch.allclose(views[5], turned, atol=1e-5)
    small = F.interpolate(normalise(batch), (16, 32), mode="bilinear", antialias=True)
    assert torch.allclose(views[0], models[0](small)[2], atol=1e-5)
    mean = mean_probability([view[0] for view in views], (64, 80))
    by_hand = [F.interpolate(v, (64, 80), mode="bilinear").sigmoid()[0] for v in views]
    assert torch.allclose(mean, torch.stack(by_hand).mean(0), atol=1e-5)


def test_scales_are_seen_only_when_asked_for(models: list[TransFuse]) -> None:
    for tta, count in (("none", 1), ("flips", 4), ("scales", 3), ("flips+scales", 12)):
        ensemble = Ensemble([Member(models[0], (32, 48))], tta, (0.75, 1.0, 1.5))  # type: ignore[arg-type]
        assert len(ensemble.logits({(32, 48): images(1)})) == count


def test_networks_that_cannot_be_averaged_are_refused(models: list[TransFuse]) -> None:
    three = create_model("transfuse_t", 3)
    with pytest.raises(ValueError, match=r"as many of each network, got \[1, 3\]"):
        Ensemble([Member(models[0], (32, 48)), Member(three, (32, 48))])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


def files(models: list[TransFuse], folder: Path) -> list[str]:
    for number, model in enumerate(models):
        torch.save(model.state_dict(), folder / f"{number}.pth")
    return [str(folder / f"{number}.pth") for number in range(len(models))]


def test_predict_averages_checkpoints(tmp_path: Path, models: list[TransFuse]) -> None:
    folder = write(tmp_path / "set", count=2) / "images"
    checkpoints = files(models, tmp_path)
    maps = []
    for number, chosen in enumerate((checkpoints[:1], checkpoints[1:], checkpoints)):
        out = tmp_path / f"out{number}"
        command = ["predict", "--checkpoint", *chosen, "--images", str(folder), "--out", str(out)]
        assert main([*command, "--save", "probabilities"]) == 0
        maps.append(np.asarray(Image.open(out / "case01_prob.png")) / 65535)
    assert np.abs(maps[2] - (maps[0] + maps[1]) / 2).max() < 1e-4
    assert np.abs(maps[0] - maps[1]).max() > 1e-2
    command = ["predict", "--checkpoint", *checkpoints, "--images", str(folder)]
    command += ["--out", str(tmp_path / "scales"), "--save", "probabilities"]
    assert main([*command, "--tta", "scales", "--tta-scales", "1", "2"]) == 0
    seen = np.asarray(Image.open(tmp_path / "scales" / "case01_prob.png")) / 65535
    assert np.abs(seen - maps[2]).max() > 1e-3


def test_wrong_views_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "--checkpoint", "x", "--images", "y", "--out", str(tmp_path)]
    assert main([*command, "--tta", "scales", "--tta-scales", "0"]) == 2
    assert "--tta-scales must be positive numbers, got (0.0,)" in capsys.readouterr().err


def test_nan_is_no_prediction(
    tmp_path: Path, models: list[TransFuse], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = create_model("transfuse_t").eval()
    with torch.no_grad():
        broken.final_2[1].conv.bias.fill_(float("nan"))
    image = np.zeros((*SIZE, 3), np.uint8)
    with pytest.raises(RunError, match="NaN or infinity, which is no prediction"):
        predict_mask(broken, image, (32, 48))
    both = Ensemble([Member(models[0], (32, 48)), Member(broken, (32, 48))])
    assert np.isnan(predict_probabilities(both, [image])[0]).any()
    torch.save(broken.state_dict(), tmp_path / "nan.pth")
    folder = write(tmp_path / "set", count=2) / "images"
    command = ["predict", "--checkpoint", str(tmp_path / "nan.pth"), "--images", str(folder)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("case0") == 2
    assert list((tmp_path / "out").glob("*.png")) == []
