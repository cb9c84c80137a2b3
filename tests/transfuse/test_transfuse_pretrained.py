"""Backbone weights in the layouts of torchvision and DeiT, made here."""

from __future__ import annotations

from pathlib import Path

import needs_train  # noqa: F401
import pytest
import timm
import torch
import torchvision

from fastclip.transfuse import create_model, load_backbones
from fastclip.transfuse.network.model import TransFuse

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def resnet18() -> Weights:
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.fixture(scope="module")
def deit_tiny() -> Weights:
    torch.manual_seed(2)
    return timm.create_model("deit_tiny_patch16_224").state_dict()


def test_both_backbones_from_files(resnet18: Weights, deit_tiny: Weights, tmp_path: Path) -> None:
    ramp = torch.arange(14.0).repeat(14, 1).reshape(1, 196, 1).expand(1, 196, 192)
    deit_tiny = {**deit_tiny, "pos_embed": torch.cat([torch.full((1, 1, 192), 99.0), ramp], 1)}
    torch.save(resnet18, tmp_path / "resnet.pth")
    torch.save({"model": deit_tiny}, tmp_path / "deit.pth")

    model = create_model("transfuse_t")
    load_backbones(model, resnet=tmp_path / "resnet.pth", deit=tmp_path / "deit.pth")

    ours = model.resnet.state_dict()
    assert ours
    assert all(torch.equal(value, resnet18[key]) for key, value in ours.items())
    blocks = model.transformer.blocks.state_dict()
    assert len(blocks) == 4 * 12
    assert all(torch.equal(value, deit_tiny[f"blocks.{key}"]) for key, value in blocks.items())
    # 14 columns 0..13 resized to 8, corners aligned; the class position (99) is gone.
    row = model.transformer.pos_embed.reshape(6, 8, 192)[3, :, 0]
    assert torch.allclose(row, torch.linspace(0, 13, 8), atol=1e-5)


def test_branches_compute_what_their_sources_do(resnet18: Weights, deit_tiny: Weights) -> None:
    model = create_model("transfuse_t").eval()
    load_backbones(model, resnet=resnet18, deit=deit_tiny)
    images = torch.randn(2, 3, 64, 64)
    source = torchvision.models.resnet18(weights=None).eval()
    source.load_state_dict(resnet18)
    with torch.no_grad():
        x = source.maxpool(source.relu(source.bn1(source.conv1(images))))
        expected = source.layer3(source.layer2(source.layer1(x)))
        net = model.resnet
        x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
        assert torch.allclose(net.layer3(net.layer2(net.layer1(x))), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "1 keys are missing.*layer1.0.conv1.weight"),
        (lambda s: s.update({"bn1.bias": torch.zeros(3)}), r"bn1.bias is \[3\], expected \[64\]"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_alone(
    resnet18: Weights, deit_tiny: Weights, change, message: str
) -> None:
    model = create_model("transfuse_t")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = dict(resnet18)
    change(wrong)
    with pytest.raises(RuntimeError, match=message):
        load_backbones(model, resnet=wrong, deit=deit_tiny)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_files_that_are_no_checkpoints(deit_tiny: Weights, tmp_path: Path) -> None:
    model = create_model("transfuse_t")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(RuntimeError, match=r"text\.pth is not a readable checkpoint"):
        load_backbones(model, resnet=tmp_path / "text.pth", deit=deit_tiny)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_backbones(model, resnet=tmp_path / "absent.pth", deit=deit_tiny)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(RuntimeError, match="not a state dict"):
        load_backbones(model, resnet=tmp_path / "list.pth", deit=deit_tiny)


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> TransFuse:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    message = "torchvision's resnet18 weights .*no route.*resnet=FILE.*--resnet-weights FILE"
    with pytest.raises(RuntimeError, match=message):
        create_model("transfuse_t", pretrained=True)
