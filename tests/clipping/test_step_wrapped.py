"""Wrapped optimizers step clipped, by their wrapper's rules; errors name the parameters."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from step_optimizers import OPTIMIZERS, Forwarding, assert_same, fill, parameters
from torch import nn

import fastclip

pytestmark = pytest.mark.core


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_wrapper_steps_clipped_and_by_its_own_rules(scale, depth):
    ps, others = parameters(), parameters()
    optimizer, other = OPTIMIZERS["adamw"](ps), OPTIMIZERS["adamw"](others)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    if scaler is not None:
        scaler.scale(torch.ones(()))
    wrapper = Forwarding(optimizer, scaler, every=2)
    for step in range(6):
        fill(ps, step, scale=scale or 1.0)
        fill(others, step)
        got = fastclip.clip_grads_in_step_(wrapper if depth == 1 else Forwarding(wrapper), 0.05)
        norm = fastclip.clip_grad_norm_(others, 0.05)
        if wrapper.calls % 2 == 0:
            other.step()
            torch.testing.assert_close(got, norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(list(ps), list(others), rtol=1e-6, atol=1e-7)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stepped", ["wrapper", "optimizer", "wrapper's own"])
@pytest.mark.parametrize("bad", [None, math.inf])
def test_a_wrapped_optimizer_is_unscaled_once_whichever_is_stepped(fused, stepped, bad):
    ps, others = parameters(), parameters()
    optimizer = torch.optim.SGD(ps, lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(torch.ones(()))
    wrapper = Forwarding(optimizer, scaler if stepped == "wrapper's own" else None)
    fill(ps, 0, bad, scale=16.0)
    fill(others, 0)
    norm = fastclip.unscale_and_clip_grad_norm_(scaler, wrapper, 0.5)
    with pytest.raises(RuntimeError, match="already been called"):
        fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 0.5)
    if stepped == "wrapper's own":
        wrapper.step()
    else:
        scaler.step(wrapper if stepped == "wrapper" else optimizer)
    if bad is None:
        torch.testing.assert_close(norm, fastclip.clip_grad_norm_(others, 0.5))
        torch.optim.SGD(others, lr=0.1).step()
    torch.testing.assert_close(list(ps), list(others))


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    ps, others = parameters(), parameters()
    inner, other = OPTIMIZERS["adamw"](ps), OPTIMIZERS["adamw"](others)
    optimizer = accelerator.prepare(inner)
    stepped = 0
    inner.register_step_post_hook(lambda *_: stepped_count.append(1))
    stepped_count: list[int] = []
    for step in range(4):
        with accelerator.accumulate(nn.Linear(1, 1)):
            fill(ps, step)
            fill(others, step)
            fastclip.clip_grads_in_step_(optimizer, 0.05)
            if accelerator.sync_gradients:
                stepped += 1
                fastclip.clip_grads_in_step_(other, 0.05)
    assert 0 < stepped == len(stepped_count) < 4
    assert_same(list(ps), list(others))


def test_lightning_in_manual_optimization(tmp_path):
    lightning = pytest.importorskip("lightning")
    norms = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net = nn.Linear(4, 1)

        def training_step(self, batch, _):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.net(batch[0]).square().mean() * 1e3)
            before = self.net.weight.detach().clone()
            norms.append(fastclip.clip_grads_in_step_(optimizer, 0.5).item())
            change = torch.cat([(self.net.weight.detach() - before).flatten()]).norm()
            assert 0 < change.item() <= 0.1 * 0.5 * 1.001

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(12, 4)), 4)
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), data)
    assert len(norms) == trainer.global_step == 3
    assert min(norms) > 1


def bad_model(of_names: bool):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[0].weight.grad = None
    net[1].bias.grad[0] = math.nan
    given = net.named_parameters() if of_names else net.parameters()
    return net, torch.optim.AdamW(given, fused=True)


@pytest.mark.parametrize("way", ["in step", "unscale", "disabled", "wrapped"])
@pytest.mark.parametrize(
    ("of_names", "named"), [(True, "1.bias"), (False, "parameter 3 of group 0")]
)
def test_an_error_names_the_parameters_and_changes_nothing(way, of_names, named):
    net, optimizer = bad_model(of_names)
    before = copy.deepcopy([(p.detach(), p.grad) for p in net.parameters()])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled=way != "disabled")
    scaler.scale(torch.ones(()))
    given = Forwarding(optimizer) if way == "wrapped" else optimizer
    clip = fastclip.clip_grads_in_step_
    if way in ("unscale", "disabled"):
        clip = functools.partial(fastclip.unscale_and_clip_grad_norm_, scaler)
    with pytest.raises(RuntimeError, match=rf"non-finite.*gradients of {named} \(1 of 3\)"):
        clip(given, 1.0, error_if_nonfinite=True)
    after = [(p.detach(), p.grad) for p in net.parameters()]
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    assert optimizer.state_dict()["state"] == {}


def test_param_groups_give_their_names():
    net, _ = bad_model(True)
    optimizer = torch.optim.AdamW(fastclip.param_groups(net, weight_decay=0.1), fused=True)
    with pytest.raises(RuntimeError, match=r"1\.bias"):
        fastclip.clip_grads_in_step_(optimizer, 1.0, error_if_nonfinite=True)
