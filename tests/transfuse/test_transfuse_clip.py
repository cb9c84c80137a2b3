"""--clip: each kind changes the gradients as its function says, under float16 too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch
from tiny import batch, learner, one_thread  # noqa: F401

import fastclip
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.training.step import Learner

pytestmark = pytest.mark.slow  # it trains

SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}


def gradients(made: Learner) -> list[torch.Tensor]:
    """Of the batch, unclipped and unscaled."""
    images, masks = batch()
    made.optimizer.zero_grad()
    made._accumulate(images, masks, 1.0)
    scale = made.update.scaler.get_scale()
    return [p.grad / scale for p in made.parameters if p.grad is not None]


def moves(made: Learner) -> tuple[list[torch.Tensor], torch.Tensor]:
    """How far one step of SGD at rate 1 moves each parameter: its clipped gradient; the norm."""
    made.model.eval()  # so that the same batch has the same gradients
    before = [p.detach().clone() for p in made.parameters]
    _, norm = made.step(*batch(), 0)
    return [old - p.detach() for old, p in zip(before, made.parameters, strict=True)], norm


def total(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors]).norm())


def close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    # A weight near 1 holds its change to 6e-8.
    return all(torch.allclose(a, b, rtol=1e-3, atol=3e-6) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("clip", ["norm", "value", "agc", "none"])
def test_a_step_moves_by_the_clipped_gradient(tmp_path: Path, clip: str, precision: str) -> None:
    options: dict[str, Any] = {"clip": clip, "clip_norm": 0.5, "clip_value": 0.01, **SGD}
    made = learner(tmp_path, precision=precision, **options)
    made.model.eval()
    plain = gradients(made)
    heads = [n.startswith(("final_x.2", "final_1.1", "final_2.1")) for n in names(made)]
    moved, norm = moves(made)
    assert float(norm) == pytest.approx(total(plain), rel=1e-3)
    if clip == "norm":
        assert total(moved) == pytest.approx(0.5, rel=1e-3)
        assert close(moved, [0.5 / total(plain) * g for g in plain])
    elif clip == "value":
        assert close(moved, [g.clamp(-0.01, 0.01) for g in plain])
        assert any((g.abs() > 0.01).any() for g in plain)
    elif clip == "none":
        assert close(moved, plain)
    else:
        assert total(moved) < 0.5 * total(plain)
        assert any(heads)
        for head, got, grad in zip(heads, moved, plain, strict=True):
            if head:  # the last layers are left out, as AGC's paper does
                assert torch.allclose(got, grad, rtol=1e-3, atol=3e-6)


def names(made: Learner) -> list[str]:
    return [name for group in made.optimizer.param_groups for name in group["param_names"]]


@pytest.mark.parametrize(
    ("clip", "kind"), [("autoclip", fastclip.AutoClip), ("zclip", fastclip.ZClip)]
)
def test_an_adaptive_clipper_follows_the_norms(tmp_path: Path, clip: str, kind: type) -> None:
    made = learner(tmp_path, clip=clip, autoclip_percentile=50.0, **SGD)
    assert isinstance(made.update.clipper, kind)
    alike = kind() if clip == "zclip" else kind(50.0)
    for seed in range(3):
        images, masks = batch(seed=seed)
        _, norm = made.step(images, masks, seed)
        alike._limit(float(norm))
    ours, theirs = made.update.clipper.state_dict(), alike.state_dict()
    assert ours.keys() == theirs.keys()
    key = "norms" if clip == "autoclip" else "first"
    assert ours[key] == pytest.approx(theirs[key])


@pytest.mark.parametrize("clip", ["norm", "value", "agc", "autoclip", "zclip", "none"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, clip: str) -> None:
    made = learner(tmp_path, clip=clip, optimizer="adamw")
    made.step(*batch(), 0)
    before = {k: v.clone() for k, v in made.model.named_parameters()}
    moments = [s["exp_avg"].clone() for s in made.optimizer.state.values()]
    spoilt = made.model.final_2[1].conv.weight
    handle = spoilt.register_hook(lambda grad: grad * math.inf)
    _, norm = made.step(*batch(), 1)
    handle.remove()
    assert not norm.isfinite()
    assert all(torch.equal(v, before[k]) for k, v in made.model.named_parameters())
    now = [s["exp_avg"] for s in made.optimizer.state.values()]
    assert all(map(torch.equal, moments, now))
    made.step(*batch(), 2)
    assert not torch.equal(spoilt, before["final_2.1.conv.weight"])


def test_float16_scales_the_loss_and_lowers_the_scale_after_an_overflow(tmp_path: Path) -> None:
    made = learner(tmp_path, precision="fp16", **SGD)
    seen: list[torch.dtype] = []
    made.model.register_forward_hook(lambda *args: seen.append(args[2][2].dtype))
    losses, _ = made.step(*batch(), 0)
    assert seen == [torch.float16]
    assert losses.dtype == torch.float32
    scale = made.update.scaler.get_scale()
    handle = made.model.final_2[1].conv.weight.register_hook(lambda grad: grad * math.inf)
    made.step(*batch(), 1)
    handle.remove()
    assert made.update.scaler.get_scale() == scale / 2
    made.update.check()
    made.update.scaler.update(1e-4)
    with pytest.raises(RunError, match="--precision fp16: gradients are not finite"):
        made.update.check()
