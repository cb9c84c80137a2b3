"""grad_norm on a GPU, by CUDA and by Triton: accuracy, capture, no waiting, the same bits again."""

from __future__ import annotations

import math

import pytest
import torch

import fastclip
from fastclip import native
from fastclip.ops import grad_norm as op
from fastclip.ops import grad_norm_gpu as gpu

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NORMS = (1.0, 2.0, math.inf)
SHAPES = [(3,), (64, 3, 7, 7), (512,), (256, 128, 3, 3), (1000, 512), (1,), (8193,)]


@pytest.fixture(params=["cuda", "triton"])
def collect(request, monkeypatch):
    """op.collect, with this owner on the GPU."""
    reason = gpu._cuda_why_not(0)
    if request.param == "cuda":
        if reason:
            pytest.skip(f"no CUDA kernels: {reason}")
    else:
        pytest.importorskip("triton")
        monkeypatch.setattr(gpu, "_cuda_why_not", lambda index: "Triton is tested")
    return lambda tensors: op.collect(tensors, take_grads=False)


@pytest.fixture
def quiet():
    """Any wait for the device is an error."""

    def on() -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    yield on
    torch.cuda.set_sync_debug_mode("default")


def randn(shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float64)
    return x.to(dtype)


def exact_norm(tensors, p: float = 2.0) -> float:
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    largest = flat.abs().max().item()
    return torch.linalg.vector_norm(flat / largest, p).item() * largest


def parameters(dtypes=DTYPES) -> list[torch.nn.Parameter]:
    found = []
    for i, shape in enumerate(SHAPES):
        p = torch.nn.Parameter(torch.empty(shape, device="cuda", dtype=dtypes[i % len(dtypes)]))
        p.grad = randn(shape, p.dtype, seed=i)
        found.append(p)
    return found


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 1023, 1025, 8192, 16385, 3_000_001])
def test_norm_and_scaling_of_every_size_dtype_and_alignment(collect, numel, dtype, p):
    x = randn(numel, dtype, seed=numel)
    for offset in (0, 1, 3):
        memory = torch.full((numel + 64,), math.nan, device="cuda", dtype=dtype)
        view = memory[16 + offset : 16 + offset + numel].copy_(x)
        exact = exact_norm([x], p)
        grads = collect([view])
        assert isinstance(grads, gpu.GpuGrads)
        assert grads.norms(p).item() == pytest.approx(exact, rel=5e-7)
        grads.clip_(exact / 2, p)
        expected = (x.double() * (exact / 2 / (exact + 1e-6))).to(dtype)
        torch.testing.assert_close(view, expected, rtol=torch.finfo(dtype).eps + 5e-7, atol=0)
        assert memory.isnan().sum() == memory.numel() - numel


@pytest.mark.parametrize("value", [2e22, 1e-30, 1e-40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_that_leave_float32(collect, dtype, value):
    x = (randn(100_000, torch.float64) * value).to(dtype)
    assert collect([x]).norms(2.0).item() == pytest.approx(exact_norm([x]), rel=5e-7)


@pytest.mark.parametrize("count", [1, 382, 2041, 10_000])
def test_lists_of_any_length(collect, count):
    tensors = [randn(1 + i % 700, DTYPES[i % 4], seed=i) for i in range(count)]
    grads = collect(tensors)
    exact = torch.stack([t.double().norm() for t in tensors])
    torch.testing.assert_close(grads.norms(2.0)[0], exact, rtol=5e-7, atol=0)
    assert grads.total_norm(2.0).item() == pytest.approx(exact.norm().item(), rel=5e-7)
    grads.clip_(exact.norm().item() / 2, 2.0)
    assert exact_norm(tensors) == pytest.approx(exact.norm().item() / 2, rel=1e-3)


def test_over_2_to_the_31_elements(collect):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB")
    x = torch.zeros((1 << 32) + 5, device="cuda", dtype=torch.bfloat16)
    x[-1], x[1 << 31] = 3.0, 4.0
    grads = collect([x])
    assert grads.total_norm(2.0).item() == 5.0
    grads.clip_(2.5, 2.0)
    assert [x[-1].item(), x[1 << 31].item()] == [1.5, 2.0]


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9, math.inf])
@pytest.mark.parametrize("dtypes", [DTYPES[:1], DTYPES[2:3], DTYPES])
def test_clip_grad_norm_as_float64_has_it(collect, quiet, dtypes, max_norm):
    ours = parameters(dtypes)
    before = [p.grad.clone() for p in ours]
    exact = exact_norm(before)
    fastclip.clip_grad_norm_(ours, max_norm)  # warm
    for p, g in zip(ours, before, strict=True):
        p.grad.copy_(g)
    quiet()
    norm = fastclip.clip_grad_norm_(ours, max_norm)
    torch.cuda.set_sync_debug_mode("default")
    assert norm.item() == pytest.approx(exact, rel=torch.finfo(norm.dtype).eps + 1e-6)
    factor = min(1.0, max_norm / (exact + 1e-6))
    for p, g in zip(ours, before, strict=True):
        expected = (g.double() * factor).to(g.dtype)
        rtol = torch.finfo(g.dtype).eps + 1e-6
        torch.testing.assert_close(p.grad, expected, rtol=rtol, atol=0)
        assert factor < 1 or torch.equal(p.grad, g)


def test_a_known_norm_on_the_device_needs_no_wait(collect, quiet):
    ours = parameters()
    total = fastclip.get_total_norm([p.grad for p in ours])
    exact = exact_norm([p.grad for p in ours])
    fastclip.clip_grads_with_norm_(ours, math.inf, total)
    quiet()
    fastclip.clip_grads_with_norm_(ours, 1.0, total)
    torch.cuda.set_sync_debug_mode("default")
    assert exact_norm([p.grad for p in ours]) == pytest.approx(1.0, rel=1e-2)
    fastclip.clip_grads_with_norm_(ours, exact / 2, torch.tensor(exact))
    assert exact_norm([p.grad for p in ours]) == pytest.approx(0.5, rel=1e-2)


def test_nonfinite_gradients_raise_before_any_changes(collect):
    ours = parameters()
    ours[2].grad[7] = math.nan
    before = [p.grad.clone() for p in ours]
    with pytest.raises(RuntimeError, match=r"non-finite.*gradients 2 of 7"):
        fastclip.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    for p, g in zip(ours, before, strict=True):
        assert torch.equal(p.grad, g) or p is ours[2]
    assert math.isnan(fastclip.clip_grad_norm_(ours, 1.0).item())
    assert all(p.grad.isnan().all() for p in ours)


def test_what_a_fused_step_asks_for(collect, quiet):
    grads = collect([p.grad for p in parameters()])
    grads.step_factors(1.0, 2.0)
    quiet()
    total, inverse, found_inf = grads.step_factors(1.0, 2.0)
    torch.cuda.set_sync_debug_mode("default")
    assert inverse.item() == pytest.approx(total.item() + 1e-6, rel=1e-6)
    assert found_inf.item() == 0


def test_equal_runs_are_bit_equal(collect):
    tensors = [randn(5_000_003, seed=1), randn(77, torch.bfloat16), randn(900_000, torch.float16)]
    runs = [(collect(tensors).total_norm(2.0), collect(tensors).norms(2.0)) for _ in range(50)]
    assert len({total.item() for total, _ in runs}) == 1
    assert all(torch.equal(each, runs[0][1]) for _, each in runs)


def test_streams_do_not_mix(collect):
    lists = [[randn(200_000 + 7 * s, seed=s), randn(31, seed=s)] for s in range(4)]
    exact = [exact_norm(tensors) for tensors in lists]
    streams = [torch.cuda.Stream() for _ in lists]
    torch.cuda.synchronize()
    found = []
    for _ in range(50):
        for stream, tensors in zip(streams, lists, strict=True):
            with torch.cuda.stream(stream):
                found.append(collect(tensors).total_norm(2.0))
    torch.cuda.synchronize()
    for i, norm in enumerate(found):
        assert norm.item() == pytest.approx(exact[i % 4], rel=1e-6)


def test_a_captured_graph_replays(collect):
    ours = parameters()
    fastclip.clip_grad_norm_(ours, 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = fastclip.clip_grad_norm_(ours, 1.0)
    for replay in range(5):
        for i, p in enumerate(ours):
            p.grad.copy_(randn(p.shape, p.dtype, seed=100 * replay + i))
        exact = exact_norm([p.grad for p in ours])
        fastclip.clip_grad_norm_(parameters(), 1.0)  # between replays, and on other tensors
        graph.replay()
        assert norm.item() == pytest.approx(exact, rel=1e-6)
        assert exact_norm([p.grad for p in ours]) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("p", [3.0, 0.5, -math.inf, 0.0])
def test_other_norms_are_torchs(collect, p):
    ours, theirs = parameters(DTYPES[:1]), parameters(DTYPES[:1])
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.1, p)
    torch.testing.assert_close(fastclip.clip_grad_norm_(ours, 0.1, p), expected)


@pytest.mark.parametrize("p", [*NORMS, 3.0])
def test_parts_on_the_cpu_and_the_gpu_with_gaps_and_repeats(collect, p):
    x, y = randn(1000), randn((64, 8))[:, ::2]
    grads = [x, torch.full((3,), 2.0), y, x, randn(5000, torch.bfloat16)]
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


def test_gaps_and_repeats_on_the_gpu_need_no_wait(collect, quiet):
    x, y = randn(1000), randn((64, 8))[:, ::2]
    collect([x, y, x]).clip_(1.0, 2.0)
    quiet()
    collect([x, y, x]).clip_(0.5, 2.0)
    collect([x, y, x]).norms(2.0)


def test_another_device_than_the_current_one(collect):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.ones(1000, device="cuda:1")
    assert collect([x]).total_norm(1.0).item() == 1000
    assert collect([x, torch.ones(24, device="cuda:0")]).total_norm(1.0).item() == 1024
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_compiled_as_eager_without_a_wait(collect, quiet, limit):
    ours, eager = parameters(), parameters()
    clip = torch.compile(fastclip.clip_grad_norm_, fullgraph=True)
    clip(parameters(), limit)
    quiet()
    norm = clip(ours, limit)
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(norm, fastclip.clip_grad_norm_(eager, limit), rtol=1e-9, atol=0)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_report_names_the_owner():
    implementation, reason = op.owner("cuda")
    assert implementation.startswith(("CUDA", "Triton"))
    assert reason == ""
    assert native.core is not None
