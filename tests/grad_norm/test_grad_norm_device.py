"""grad_norm on a GPU: what only a device shows. Streams, graphs, sizes, waiting, other devices."""

from __future__ import annotations

import pytest
import torch
from gpu_backend import NORMS, ON_GPU, exact_norm

import fastclip
from fastclip import native
from fastclip.ops.grad_norm import backends

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("backend", ON_GPU, indirect=True)]


def test_over_2_to_the_31_elements(backend):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB")
    x = torch.zeros((1 << 32) + 5, device=backend.device, dtype=torch.bfloat16)
    x[-1], x[1 << 31] = 3.0, 4.0
    grads = backend.collect([x])
    assert grads.total_norm(2.0).item() == 5.0
    grads.clip_(2.5, 2.0)
    assert [x[-1].item(), x[1 << 31].item()] == [1.5, 2.0]


def test_streams_do_not_mix(backend):
    lists = [[backend.randn(200_000 + 7 * s, seed=s), backend.randn(31, seed=s)] for s in range(4)]
    exact = [exact_norm(tensors) for tensors in lists]
    streams = [torch.cuda.Stream() for _ in lists]
    torch.cuda.synchronize()
    found = []
    for _ in range(50):
        for stream, tensors in zip(streams, lists, strict=True):
            with torch.cuda.stream(stream):
                found.append(backend.collect(tensors).total_norm(2.0))
    torch.cuda.synchronize()
    for i, norm in enumerate(found):
        assert norm.item() == pytest.approx(exact[i % 4], rel=1e-6)


def test_a_captured_graph_replays(backend):
    ours = backend.parameters()
    fastclip.clip_grad_norm_(ours, 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = fastclip.clip_grad_norm_(ours, 1.0)
    for replay in range(5):
        for i, p in enumerate(ours):
            p.grad.copy_(backend.randn(p.shape, p.dtype, seed=100 * replay + i))
        exact = exact_norm([p.grad for p in ours])
        fastclip.clip_grad_norm_(backend.parameters(), 1.0)  # between replays, and on other tensors
        graph.replay()
        assert norm.item() == pytest.approx(exact, rel=1e-6)
        assert exact_norm([p.grad for p in ours]) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("p", [*NORMS, 3.0])
def test_parts_on_the_cpu_and_the_gpu_with_gaps_and_repeats(backend, p):
    x, y = backend.randn(1000), backend.randn((64, 8))[:, ::2]
    grads = [x, torch.full((3,), 2.0), y, x, backend.randn(5000, torch.bfloat16)]
    before = [g.clone() for g in grads]
    exact = exact_norm([g.cuda() for g in grads], p)
    ours = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for parameter, grad in zip(ours, grads, strict=True):
        parameter.grad = grad
    norm = fastclip.clip_grad_norm_(ours, exact / 2, p)
    assert norm.device == x.device
    assert norm.item() == pytest.approx(exact, rel=1e-6)
    assert fastclip.get_total_norm(grads[1:], p).device.type == "cpu"
    for i, (new, old) in enumerate(zip(grads, before, strict=True)):
        factor = 0.25 if i in (0, 3) else 0.5
        torch.testing.assert_close(new, old * factor, rtol=1e-2 if i == 4 else 1e-5, atol=0)


def test_gaps_and_repeats_on_the_gpu_need_no_wait(backend):
    x, y = backend.randn(1000), backend.randn((64, 8))[:, ::2]
    backend.collect([x, y, x]).clip_(1.0, 2.0)
    with backend.quiet():
        backend.collect([x, y, x]).clip_(0.5, 2.0)
        backend.collect([x, y, x]).norms(2.0)


def test_another_device_than_the_current_one(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.ones(1000, device="cuda:1")
    assert backend.collect([x]).total_norm(1.0).item() == 1000
    assert backend.collect([x, torch.ones(24, device="cuda:0")]).total_norm(1.0).item() == 1024
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_compiled_as_eager_without_a_wait(backend, limit):
    ours, eager = backend.parameters(), backend.parameters()
    clip = torch.compile(fastclip.clip_grad_norm_, fullgraph=True)
    clip(backend.parameters(), limit)
    with backend.quiet():
        norm = clip(ours, limit)
    torch.testing.assert_close(norm, fastclip.clip_grad_norm_(eager, limit), rtol=1e-9, atol=0)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_report_names_the_owner(backend):
    implementation, reason = backends.implementation("cuda")
    assert implementation.startswith(("CUDA", "Triton"))
    assert reason == ""
    assert native.core is not None
