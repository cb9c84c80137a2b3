"""The way of AGC to CUDA's kernel, all of it but the device: tests/cuda_on_host."""

from __future__ import annotations

import pytest
import torch
from gpu_backend import ON_HOST

import fastclip
from fastclip.ops.grad_norm import backends
from fastclip.ops.unit_clip import dispatch

PAGE = 1361  # pairs in one launch; 167 where the driver is older than CUDA 12.1
pytestmark = [
    pytest.mark.slow,  # builds the core a second time
    pytest.mark.parametrize("backend", [ON_HOST], indirect=True),
]


def parameters(count: int) -> list[torch.nn.Parameter]:
    found = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(count)]
    for p in found:
        p.grad = torch.ones(2, 3)
    return found


@pytest.mark.parametrize(
    ("count", "driver", "pages"), [(382, 13000, 1), (PAGE + 1, 13000, 2), (382, 12000, 3)]
)
def test_a_launch_for_each_page(backend, cuda_on_host, count, driver, pages):
    ours, interface = parameters(count), cuda_on_host[1]
    interface.set_driver(driver)
    before = interface.launches()
    try:
        fastclip.AGC(0.01).clip_(ours)
    finally:
        interface.set_driver(13000)
    assert interface.launches() - before == pages
    assert all(p.grad.norm().item() == pytest.approx(0.01 * 6**0.5) for p in ours)


def test_a_device_that_has_no_code_is_left_to_others(backend, cuda_on_host, monkeypatch):
    assert dispatch.implementation("cuda") == ("CUDA", "")
    asked = []
    monkeypatch.setattr(
        backends, "cuda_why_not", lambda index: asked.append(index) or "there is none"
    )
    name, reason = dispatch.implementation("cuda")
    assert "there is none" in name + reason
    asked.clear()
    ours = parameters(3)
    before = cuda_on_host[1].launches()
    fastclip.AGC(0.01).clip_(ours)
    assert cuda_on_host[1].launches() == before
    assert asked == [0]  # once for a device
    assert all(p.grad.norm().item() == pytest.approx(0.01 * 6**0.5) for p in ours)


def test_gradients_made_under_inference_mode_raise_before_any_is_written(backend):
    ours = parameters(2)
    with torch.inference_mode():
        grad = torch.ones(2, 3)
    ours[1].grad = grad
    with pytest.raises(RuntimeError, match="inference"):
        fastclip.AGC(0.01).clip_(ours)
    assert (ours[0].grad == 1).all()


def test_float8_is_refused_before_any_is_written(backend):
    ours = parameters(2)
    odd = torch.nn.Parameter(torch.ones(2, 3).to(torch.float8_e4m3fn), requires_grad=False)
    odd.grad = odd.detach().clone()
    with pytest.raises(NotImplementedError, match="float8"):
        fastclip.AGC(0.01).clip_([*ours, odd])
    assert (ours[0].grad == 1).all()
