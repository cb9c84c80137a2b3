"""Clipping inside a fused step, and unscaling with clipping, against doing one after the other."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core

FUSED = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
    "adam": lambda ps: torch.optim.Adam(ps, lr=1e-2, fused=True),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, fused=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=1e-2, fused=True),
}


def fused(name, parameters):
    optimizer = FUSED[name](parameters)
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        pytest.skip(f"this torch's fused {name} takes no gradient factor")
    return optimizer


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 1))


def backward(net: nn.Module, step: int, factor: float = 1.0) -> None:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(step))
    net.zero_grad()
    (net(x).square().mean() * factor).backward()


def close(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("limit", [0.05, 1e9])
@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_ten_steps_equal_clip_then_step(kind, limit, order):
    one, two = model(), model()
    first, second = fused(kind, one.parameters()), fused(kind, two.parameters())
    for step in range(10):
        backward(one, step)
        backward(two, step)
        expected = fastclip.clip_grad_norm_(one.parameters(), limit, order)
        first.step()
        torch.testing.assert_close(
            fastclip.clip_grads_in_step_(second, limit, order), expected, rtol=1e-6, atol=0
        )
        assert not hasattr(second, "grad_scale")
        assert not hasattr(second, "found_inf")
    close(one, two)


@pytest.mark.parametrize("kind", FUSED)
def test_a_norm_that_is_not_finite_skips_the_step(kind):
    net = model()
    optimizer = fused(kind, net.parameters())
    backward(net, 0)
    fastclip.clip_grads_in_step_(optimizer, 1.0)
    before = copy.deepcopy(net)
    backward(net, 1)
    net[0].weight.grad[0, 0] = math.nan
    assert fastclip.clip_grads_in_step_(optimizer, 1.0).isnan()
    close(net, before)
    with pytest.raises(RuntimeError, match="non-finite"):
        fastclip.clip_grads_in_step_(optimizer, 1.0, error_if_nonfinite=True)
    assert not hasattr(optimizer, "found_inf")


def test_a_grad_scale_that_is_there_is_divided_out_and_put_back():
    one, two = model(), model()
    first, second = (FUSED["adamw"](net.parameters()) for net in (one, two))
    scale = torch.tensor(1024.0)
    second.grad_scale = scale
    for step in range(5):
        backward(one, step)
        backward(two, step, 1024.0)
        expected = fastclip.clip_grad_norm_(one.parameters(), 0.05)
        first.step()
        got = fastclip.clip_grads_in_step_(second, 0.05)
        torch.testing.assert_close(got, expected)
        assert second.grad_scale is scale
    close(one, two)


@pytest.mark.parametrize(("limit", "scaled"), [(1e9, False), (0.05, True)])
def test_only_a_step_that_clips_has_the_optimizer_write_gradients(limit, scaled):
    net = model()
    optimizer = FUSED["adamw"](net.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(hasattr(o, "grad_scale")))
    backward(net, 0)
    before = [p.grad.clone() for p in net.parameters()]
    fastclip.clip_grads_in_step_(optimizer, limit)
    assert seen == [scaled]
    same = [torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True)]
    assert not any(same) if scaled else all(same)


def test_attributes_are_gone_after_an_exception():
    optimizer = FUSED["adamw"](model().parameters())

    def fail(*_):
        raise OSError("disk")

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(OSError, match="disk"):
        fastclip.clip_grads_in_step_(optimizer, 1.0)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


def test_an_optimizer_that_cannot_is_refused_with_the_alternative():
    for optimizer in (
        torch.optim.AdamW(model().parameters()),
        torch.optim.RMSprop(model().parameters()),
    ):
        with pytest.raises(ValueError, match=r"fused=True .* or call fastclip.clip_grad_norm_"):
            fastclip.clip_grads_in_step_(optimizer, 1.0)


@pytest.mark.parametrize("scale", [2.0**16, 1.0, 0.25])
@pytest.mark.parametrize("limit", [0.05, 1e9])
def test_unscale_and_clip_equals_one_after_the_other(scale, limit):
    nets, norms = (model(), model()), []
    for net, fused in zip(nets, (False, True), strict=True):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        for step in range(6):
            backward(net, step, scaler.scale(torch.ones(())).item())
            if step == 4:
                net[0].bias.grad[0] = math.inf
            if fused:
                norm = fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, limit)
            else:
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(net.parameters(), limit)
            norms.append(norm)
            scaler.step(optimizer)
            scaler.update()
        norms.append(torch.tensor(scaler.get_scale()))
    half = len(norms) // 2
    torch.testing.assert_close(norms[half:], norms[:half], rtol=1e-5, atol=0)
    close(*nets)


def test_unscaling_twice_raises_as_torch_does():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(torch.ones(1, 20)).sum()).backward()
    fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0)
    with pytest.raises(RuntimeError, match="already been called"):
        fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)


def test_a_disabled_scaler_clips_plainly():
    net = model()
    backward(net, 0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 0.01)
    norm = fastclip.get_total_norm([p.grad for p in net.parameters()])
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
