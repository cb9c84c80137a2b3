"""What a step inside a clip promises: skips leave no trace, wrappers step clipped, errors name."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import fastclip
from fastclip.clipping.factor import Rule, _inverse_on_device, _inverse_on_host

pytestmark = pytest.mark.core

OPTIMIZERS = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1, fused=True),
    "amsgrad": lambda ps: torch.optim.Adam(ps, lr=0.1, amsgrad=True, fused=True),
    "maximize": lambda ps: torch.optim.Adam(ps, lr=0.1, maximize=True, fused=True),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.1, fused=True),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    "dampening": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, dampening=0.4, fused=True),
    "nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1, fused=True),
}


@pytest.fixture
def memory_nobody_wrote_is_nan():
    torch.use_deterministic_algorithms(True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in [(3, 4), (5,), ()]]


def fill(ps, step: int, bad: float | None = None, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in ps:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
    if bad is not None:
        ps[1].grad[2] = bad


def make(name, ps) -> torch.optim.Optimizer:
    optimizer = OPTIMIZERS[name](ps)
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        pytest.skip(f"this torch's fused {name} takes no gradient factor")
    return optimizer


def assert_same(one, two) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.usefixtures("memory_nobody_wrote_is_nan")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("reason", [math.inf, -math.inf, math.nan, "threshold", "found_inf"])
@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_skipped_step_changes_nothing_the_first_included(name, reason, when):
    ps, others = parameters(), parameters()
    optimizer, other = make(name, ps), make(name, others)
    for step in range(5):
        if step == when:
            before = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in ps]))
            fill(ps, 99, None if isinstance(reason, str) else reason, scale=100.0)
            grads = [p.grad.clone() for p in ps]
            if reason == "found_inf":
                optimizer.found_inf = torch.tensor(1.0)
            limit = 50.0 if reason == "threshold" else math.inf
            fastclip.clip_grads_in_step_(optimizer, 1.0, skip_above=limit)
            if reason == "found_inf":
                del optimizer.found_inf
            assert_same((optimizer.state_dict(), [p.detach() for p in ps]), before)
            torch.testing.assert_close([p.grad for p in ps], grads, equal_nan=True)
        fill(ps, step)
        fill(others, step)
        fastclip.clip_grads_in_step_(optimizer, 1.0, skip_above=50.0)
        fastclip.clip_grads_in_step_(other, 1.0)
    assert_same(list(ps), list(others))
    assert all(p.isfinite().all() for p in ps)


@pytest.mark.usefixtures("memory_nobody_wrote_is_nan")
@pytest.mark.parametrize("name", ["adamw", "momentum", "dampening", "unfused"])
@pytest.mark.parametrize("reason", [math.inf, math.nan, "threshold"])
def test_a_skip_through_gradscaler_leaves_no_trace_and_a_spike_keeps_the_scale(name, reason):
    ps, others = parameters(), parameters()
    if name == "unfused":
        optimizer, other = (torch.optim.SGD(q, lr=0.1, momentum=0.9) for q in (ps, others))
    else:
        optimizer, other = make(name, ps), make(name, others)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    before = [p.detach().clone() for p in ps]
    bad = None if reason == "threshold" else reason
    fill(ps, 99, bad, scale=8 * 100.0)
    fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
    assert scaler.step(optimizer) is None
    scaler.update()
    assert scaler.get_scale() == (8.0 if reason == "threshold" else 4.0)
    assert_same([p.detach() for p in ps], before)
    assert all(p.grad is not None for p in ps)
    for step in range(3):
        fill(ps, step, scale=scaler.get_scale())
        fill(others, step)
        fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
        scaler.step(optimizer)
        scaler.update()
        fastclip.clip_grad_norm_(others, 1.0)
        other.step()
    torch.testing.assert_close(list(ps), list(others), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_a_spike_under_gradscaler_is_seen_by_hooks_of_the_step(fused):
    ps = parameters()
    optimizer = torch.optim.SGD(ps, lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    seen, before = [], []
    optimizer.register_step_pre_hook(lambda o, *_: before.append(float(getattr(o, "found_inf", 0))))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(float(getattr(o, "found_inf", 0))))
    for scale in (1.0, 100.0, 1.0):
        fill(ps, 0, scale=scale)
        fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf")
    assert before == seen == [0.0, 1.0, 0.0]


def test_a_step_that_never_came_skips_no_later_one():
    ps = parameters()
    optimizer = OPTIMIZERS["sgd"](ps)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    fill(ps, 0, scale=1e4)
    fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0, skip_above=50.0)
    scaler.update()
    before = ps[0].detach().clone()
    fill(ps, 1)
    optimizer.step()
    assert not torch.equal(ps[0], before)


def test_skipped_steps_are_seen_by_hooks_of_the_step():
    ps = parameters()
    optimizer = OPTIMIZERS["adamw"](ps)
    seen = []
    optimizer.register_step_post_hook(lambda o, *_: seen.append(float(getattr(o, "found_inf", 0))))
    for scale in (1.0, 100.0, 1.0):
        fill(ps, 0, scale=scale)
        fastclip.clip_grads_in_step_(optimizer, 1.0, skip_above=torch.tensor(50.0))
    assert seen == [0.0, 1.0, 0.0]
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("wrong", [-1.0, math.nan, torch.ones(2), "x", None])
def test_a_wrong_threshold_is_named(wrong):
    ps = parameters()
    fill(ps, 0)
    with pytest.raises((ValueError, TypeError), match="skip_above"):
        fastclip.clip_grads_in_step_(OPTIMIZERS["sgd"](ps), 1.0, skip_above=wrong)


@pytest.mark.parametrize(
    ("dtype", "size", "limit"),
    [
        *((torch.float64, *case) for case in [(1e60, 1.0), (1e60, 1e-200)]),
        *(
            (dtype, *case)
            for dtype in (torch.float64, torch.float32)
            for case in [(1.0, 1e-45), (3e37, 1e-3), (1e-3, 1e-42), (2.0, -1e-42)]
        ),
    ],
)
@pytest.mark.parametrize("scale", [None, 4.0])
def test_ratios_past_float32_clip_first(dtype, size, limit, scale):
    p = nn.Parameter(torch.zeros(8, dtype=dtype))
    optimizer = torch.optim.SGD([p], lr=0.1, fused=True)
    p.grad = torch.full((8,), size * (scale or 1.0), dtype=dtype)
    if scale is not None:
        optimizer.grad_scale = torch.tensor(scale)
    fastclip.clip_grads_in_step_(optimizer, limit)
    exact = size * min(limit / (size * 8**0.5 + 1e-6), 1.0) * -0.1
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    right = torch.full((8,), exact, dtype=torch.float64)
    torch.testing.assert_close(p.detach().double(), right, rtol=tolerance, atol=2 * smallest)


def test_float64_steps_are_those_of_clipping_first():
    ps, others = ([nn.Parameter(p.double()) for p in parameters()] for _ in range(2))
    optimizer, other = OPTIMIZERS["sgd"](ps), OPTIMIZERS["sgd"](others)
    for step in range(5):
        fill(ps, step)
        fill(others, step)
        fastclip.clip_grads_in_step_(optimizer, 0.3)
        torch.nn.utils.clip_grad_norm_(others, 0.3)
        other.step()
    torch.testing.assert_close(list(ps), list(others), rtol=1e-13, atol=0)


@pytest.mark.parametrize("norm", [0.0, 0.5, 3.0, 1e30, 3e38, 1e300, math.inf])
@pytest.mark.parametrize("limit", [1.0, 1e-3, 1e-9, 0.0, -1.0, -1e-9, math.inf, 1e200])
@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("wide", [False, True])
def test_device_and_host_take_the_same_factor(norm, limit, scale, wide):
    rule, exact = Rule(limit, 2.0), torch.tensor(norm, dtype=torch.float64)
    given = None if scale is None else torch.tensor(scale)
    skip = rule.skips(exact.float())
    results = []
    for inverse_of in (_inverse_on_host, _inverse_on_device):
        first = [1.0]

        def clip_first(by, first=first):
            first[0] = (limit / (by + 1e-6)).clamp(max=1.0).item()

        arguments = bool(skip) if inverse_of is _inverse_on_host else skip
        inverse = inverse_of(rule, exact, given, arguments, wide, clip_first)
        results.append((float(inverse), first[0]))
    if not skip:
        assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert results[1][1] == 1.0 or not skip


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [1.0, 1e-3])
def test_a_gpu_is_not_waited_for(monkeypatch, name, dtype, limit):
    """On fake tensors, which have a device and no values: reading one would raise."""
    seen = []  # torch's fused SGD has no version for them
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *a, **k: seen.append(k["is_first_step"]))
    with FakeTensorMode():
        ps = [nn.Parameter(torch.ones(3, 4, device="cuda", dtype=dtype)) for _ in range(2)]
        optimizer = OPTIMIZERS[name](ps)
        threshold = torch.tensor(50.0, device="cuda")
        for _ in range(2):
            for p in ps:
                p.grad = torch.ones_like(p)
            total = fastclip.clip_grads_in_step_(optimizer, limit, skip_above=threshold)
        with pytest.raises(DataDependentOutputException):
            total.item()
    # A first step by a momentum of zeros is the same, and is nothing where it is skipped.
    assert seen == ([] if name == "adamw" else [False, False])


class Forwarding:
    """Holds the optimizer and forwards what it lacks, as trainers' wrappers do."""

    def __init__(self, optimizer, scaler=None, every=1):
        self.optimizer, self.scaler, self.every, self.calls = optimizer, scaler, every, 0

    def __getattr__(self, name):
        return getattr(self.__dict__["optimizer"], name)

    def step(self, closure=None):
        self.calls += 1
        if self.calls % self.every:
            return
        if self.scaler is None:
            self.optimizer.step(closure)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


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
