"""Clipping by the backends of a GPU, and by CUDA's whole path on the CPU: see conftest."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_backend import DTYPES, exact_norm

import fastclip


@pytest.fixture
def foreach_calls(monkeypatch) -> list[str]:
    """torch's foreach multiplication, which a kernel of ours is to do instead."""
    calls: list[str] = []
    multiply = torch._foreach_mul_

    def noted(*arguments):
        calls.append("_foreach_mul_")
        return multiply(*arguments)

    monkeypatch.setattr(torch, "_foreach_mul_", noted)
    return calls


@pytest.mark.parametrize("max_norm", [1.0, 1e9, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_the_optimizers_step(backend, max_norm, dtype):
    ours, theirs = backend.parameters([dtype]), backend.parameters([dtype])
    optimizers = [torch.optim.AdamW(p, lr=0.1, fused=True) for p in (ours, theirs)]
    for step in range(3):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = backend.randn(p.shape, dtype, seed=10 * step + i)
            q.grad = p.grad.clone()
        with backend.quiet():
            norm = fastclip.clip_grads_in_step_(optimizers[0], max_norm)
        expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        optimizers[1].step()
        torch.testing.assert_close(norm, expected, rtol=1e-5, atol=0)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_step_that_clips_nothing_writes_no_gradient(backend):
    """A fused step that is given a factor writes the gradients, whatever the factor is."""
    ours = backend.parameters(DTYPES[:1])
    optimizer = torch.optim.SGD(ours, lr=0.1, fused=True)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.__dict__.get("grad_scale")))
    for max_norm in (1e9, 1.0):
        fastclip.clip_grads_in_step_(optimizer, max_norm)
    assert len(seen) == 2
    assert all(getattr(optimizer, "grad_scale", None) is None for _ in seen)
    assert seen == [None, None]


def test_a_skipped_step_changes_nothing(backend):
    ours = backend.parameters(DTYPES[:1])
    ours[1].grad[0, 0] = math.inf
    before = [(p.detach().clone(), p.grad.clone()) for p in ours]
    optimizer = torch.optim.AdamW(ours, lr=0.1, fused=True)
    assert fastclip.clip_grads_in_step_(optimizer, 0.5).item() == math.inf
    for p, (value, grad) in zip(ours, before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, grad)


@pytest.mark.parametrize("dtypes", [DTYPES[:1], DTYPES[:3]])
def test_unscaling_and_clipping_in_one_launch(backend, dtypes, foreach_calls):
    ours = backend.parameters(dtypes)
    optimizer = torch.optim.SGD(ours, lr=0.1)
    scaler = torch.amp.GradScaler(backend.device, init_scale=1024.0)
    scaler.scale(backend.randn(1))
    exact = exact_norm([p.grad for p in ours]) / 1024
    norm = fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, exact / 2)
    assert foreach_calls == []
    assert norm.item() == pytest.approx(exact, rel=1e-6)
    assert exact_norm([p.grad for p in ours]) == pytest.approx(exact / 2, rel=1e-3)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1024.0


@pytest.mark.parametrize("dtypes", [[dtype] for dtype in DTYPES] + [DTYPES])
@pytest.mark.parametrize("limit", [0.0, 0.1, 1.5, math.inf])
def test_by_value(backend, dtypes, limit):
    ours = backend.parameters(dtypes)
    ours[0].grad[0], ours[1].grad[0, 0] = math.nan, -math.inf
    expected = [p.grad.clamp(-limit, limit) for p in ours]
    before = ours[3].grad._version
    fastclip.clip_grad_value_(backend.parameters(dtypes), limit)
    with backend.quiet():
        fastclip.clip_grad_value_(ours, limit)
    for p, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(p.grad, wanted, rtol=0, atol=0, equal_nan=True)
    assert ours[3].grad._version > before


@pytest.mark.parametrize("limit", [-0.5, math.nan])
def test_by_a_value_that_is_torchs(backend, limit):
    ours, theirs = backend.parameters(), backend.parameters()
    fastclip.clip_grad_value_(ours, limit)
    torch.nn.utils.clip_grad_value_(theirs, limit)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, equal_nan=True)
    half = backend.parameters([torch.float16])
    with pytest.raises(RuntimeError, match=r"overflow|out of range|cannot be converted"):
        fastclip.clip_grad_value_(half, 1e9)


@pytest.mark.parametrize("per_parameter", [False, True])
@pytest.mark.parametrize("limits", [(0.5, math.inf, 3.0), (1.0, 1.0, 1.0)])
def test_groups_of_their_own_limits(backend, limits, per_parameter):
    ours = backend.parameters()
    ours[3].grad = None
    groups = [
        {"params": part, "max_norm": limit}
        for part, limit in zip((ours[:2], ours[2:5], ours[5:]), limits, strict=True)
    ]
    units = [(group["params"], group["max_norm"]) for group in groups]
    if per_parameter:
        units = [([p], limit) for part, limit in units for p in part]
    expected, norms = {}, []
    for part, limit in units:
        grads = [p.grad for p in part if p.grad is not None]
        norms.append(exact_norm(grads) if grads else 0.0)
        factor = min(1.0, limit / (norms[-1] + 1e-6))
        expected |= {id(p): p.grad.double() * factor for p in part if p.grad is not None}
    fastclip.clip_groups_(groups, per_parameter=per_parameter)
    for p in ours:
        if p.grad is not None:
            wanted = expected[id(p)].to(p.grad.dtype)
            p.grad.copy_(p.grad)
            rtol = torch.finfo(p.grad.dtype).eps + 1e-6
            torch.testing.assert_close(p.grad, wanted, rtol=rtol, atol=0)
    with backend.quiet():
        found = fastclip.clip_groups_(groups, per_parameter=per_parameter)
    assert len(found) == len(norms)


def test_groups_take_one_launch(backend, cuda_on_host):
    if backend.device != "cpu":
        pytest.skip("counts the launches of the stand-in")
    ours = backend.parameters()
    groups = [{"params": [p], "max_norm": 0.1 * (i + 1)} for i, p in enumerate(ours)]
    before = cuda_on_host[1].launches()
    fastclip.clip_groups_(groups)
    assert cuda_on_host[1].launches() - before == 2  # the norms, and the scaling
