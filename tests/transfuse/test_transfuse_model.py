"""The network: published keys, published arithmetic, any size, trainable under DDP."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch

from fastclip.transfuse import create_model
from fastclip.transfuse.network.blocks import Residual, Up

DATA = Path(__file__).parents[1] / "data"


def published_keys(stem: str) -> list[tuple[str, list[int], str, bool]]:
    rows = []
    for line in (DATA / f"state_dict_{stem}.txt").read_text().splitlines():
        if not line.startswith("#"):
            key, shape, dtype, kind = line.split("\t")
            dims = [int(n) for n in shape.strip("[]").split(",") if n]
            rows.append((key, dims, dtype, kind == "param"))
    return rows


@pytest.mark.parametrize(("stem", "count"), [("s", 598), ("l", 730), ("l_384", 730)])
def test_state_dict_is_the_published_one(stem: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(f"transfuse_{stem}")
    parameters = dict(model.named_parameters())
    ours = [
        (key, list(value.shape), str(value.dtype).removeprefix("torch."), key in parameters)
        for key, value in model.state_dict().items()
    ]
    published = published_keys(stem)
    assert len(published) == count
    assert ours == published  # the order too: optimizer states go by it


def formula_weights(model: torch.nn.Module) -> None:
    """Fill a model with the closed-form weights of the parity vector.

    The product is 7 * (0.618... * i): these weights amplify a rounding error by 1e5, so that
    another order of the same product moves map_x by 7e-4.
    """
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        n = value.numel()
        phase = (zlib.crc32(f"1:{key}".encode()) % 100003) / 100003 * 2 * math.pi
        w = np.sin(7 * (0.6180339887498949 * np.arange(n, dtype=np.float64)) + phase)
        if key.endswith("running_var"):
            w = 1 + 0.5 * w**2
        elif key.endswith(("running_mean", "pos_embed", "cls_token")):
            w = 0.1 * w
        elif value.ndim >= 2:
            w = w * math.sqrt(2 / (n / value.shape[0]))
        elif key.endswith("weight"):
            w = 1 + 0.1 * w
        else:
            w = 0.1 * w
        value.copy_(torch.from_numpy(w.astype(np.float32)).reshape(value.shape))


def formula_images() -> torch.Tensor:
    b, c, y, x = np.ogrid[:2, :3, :192, :256]
    image = np.sin(0.05 * x * (c + 1) + 0.3 * b + 1) * np.cos(0.03 * y * (c + 1) - 0.2 * b)
    return torch.from_numpy(image.astype(np.float32)).double()


def test_transfuse_s_computes_what_the_published_network_does() -> None:
    model = create_model("transfuse_s").eval()
    with torch.no_grad():
        formula_weights(model)
        maps = model.double()(formula_images())
    expected = np.load(DATA / "parity_s.npz")
    for name, ours in zip(("map_x", "map_1", "map_2"), maps, strict=True):
        assert ours.shape == (2, 1, 192, 256)
        error = np.abs(ours[:, :, ::4, ::4].numpy() - expected[name]).max()
        assert error <= 1e-5 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("size", [(16, 16), (96, 128), (112, 80), (224, 224)])
def test_any_multiple_of_16(size: tuple[int, int]) -> None:
    model = create_model("transfuse_t", num_classes=2).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    assert [list(m.shape) for m in maps] == [[1, 2, *size]] * 3
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 100, 128), "100x128.*multiples of 16.*96x128"),
        ((1, 3, 96, 8), "96x8.*96x16"),
        ((1, 1, 96, 128), r"\[1, 1, 96, 128\]"),
        ((3, 96, 128), r"\[3, 96, 128\]"),
    ],
)
def test_bad_images_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("transfuse_t")(torch.zeros(shape))


def test_unknown_names_get_the_choices_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"choose from transfuse_t, .*did you mean 'transfuse_s'"):
        create_model("TransFuse-S")
    with pytest.raises(ValueError, match="num_classes"):
        create_model("transfuse_t", num_classes=0)


def test_position_embedding_starts_random_and_follows_the_grid() -> None:
    model = create_model("transfuse_t")
    assert 0.015 < model.transformer.pos_embed.std() < 0.025
    model.transformer.pos_embed.data.fill_(3.0)
    from fastclip.transfuse.network.model import resize_pos_embed

    resized = resize_pos_embed(model.transformer.pos_embed, (6, 8), (14, 5))
    assert resized.shape == (1, 70, 192)
    assert torch.allclose(resized, torch.tensor(3.0))


def test_up_pads_to_an_odd_skip_and_residual_keeps_its_input() -> None:
    up = Up(4, 6, 2, attn=True).eval()
    assert up(torch.randn(1, 4, 3, 3), torch.randn(1, 2, 7, 6)).shape == (1, 6, 7, 6)

    block = Residual(8, 8).eval()
    torch.nn.init.zeros_(block.conv3.conv.weight)
    torch.nn.init.zeros_(block.conv3.conv.bias)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x)
    assert not block.skip_layer.conv.weight.requires_grad


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # slower, not wrong
def test_every_parameter_that_wants_a_gradient_gets_one_under_ddp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("transfuse_t")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ddp = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the second step raises where the first left a gradient out
            sum(m.mean() for m in ddp(torch.randn(2, 3, 32, 32))).backward()
    finally:
        torch.distributed.destroy_process_group()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == ["transformer.cls_token"]
