"""Clipping under torch.compile: the eager results, one node, no recompilation for a new limit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastclip
from fastclip import native
from fastclip.ops.grad_norm import compiled

BACKENDS = ("aot_eager", "inductor")
needs_native = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


def parameters(grads=None) -> list[nn.Parameter]:
    if grads is None:
        torch.manual_seed(0)
        dtypes = (torch.float32, torch.bfloat16, torch.float64)
        grads = [torch.randn(3, i + 1).to(dtypes[i % 3]) for i in range(5)]
        grads[3] = None
    found = []
    for grad in grads:
        found.append(nn.Parameter(torch.zeros(3) if grad is None else torch.zeros_like(grad)))
        found[-1].grad = None if grad is None else grad.clone()
    return found


def traced(function, *args, backend="aot_eager"):
    """(the result, the calls of the ops in the traced graph, all calls in it)."""
    graphs = []

    def spy(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    result = torch.compile(function, fullgraph=True, backend=spy)(*args)
    calls = [str(node.target) for g in graphs for node in g.graph.nodes if "call" in node.op]
    return result, [call for call in calls if "fastclip" in call], calls


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [0.5, 1e9, 0.0, -1.0, math.inf])
def test_clipping_is_one_node_and_equals_eager(backend, limit):
    ours, eager = parameters(), parameters()
    versions = [p.grad._version for p in ours if p.grad is not None]
    norm, ops, calls = traced(lambda ps: fastclip.clip_grad_norm_(ps, limit), ours, backend=backend)
    expected = fastclip.clip_grad_norm_(eager, limit)
    assert torch.equal(norm, expected)
    assert norm.dtype == expected.dtype
    assert ops == ["fastclip.clip_grads_"]
    assert len(calls) <= 6  # ones, times, the op, and no_grad's entry and exit
    for a, b in zip(ours, eager, strict=True):
        assert a.grad is b.grad is None or torch.equal(a.grad, b.grad)
    if limit == 0.5:
        written = [p.grad._version for p in ours if p.grad is not None]
        assert all(after > before for after, before in zip(written, versions, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_and_scaling_by_it_equal_eager(backend):
    def both(ps):
        norm = fastclip.get_total_norm([p.grad for p in ps if p.grad is not None], 1.0)
        fastclip.clip_grads_with_norm_(ps, 0.5, norm)
        return norm

    ours, eager = parameters(), parameters()
    norm, ops, _ = traced(both, ours, backend=backend)
    assert torch.equal(norm, both(eager))
    assert ops == ["fastclip.grad_norm", "fastclip.clip_grads_with_norm_"]
    for a, b in zip(ours, eager, strict=True):
        assert a.grad is b.grad is None or torch.equal(a.grad, b.grad)


@needs_native
def test_inductor_scales_the_gradients_where_they_lie(monkeypatch):
    seen = []
    collect = compiled.collect_in_op
    monkeypatch.setattr(
        compiled,
        "collect_in_op",
        lambda grads, **kw: (seen.extend(g.data_ptr() for g in grads), collect(grads, **kw))[1],
    )
    ours = parameters()
    clip = torch.compile(lambda ps: fastclip.clip_grad_norm_(ps, 0.1), fullgraph=True)
    clip(ours)
    assert seen == [p.grad.data_ptr() for p in ours if p.grad is not None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_limit_that_changes_is_compiled_twice_at_most(backend):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    clip = torch.compile(fastclip.clip_grad_norm_, fullgraph=True, backend=count)
    for limit in (1.0, 0.9, 0.7, 0.6, 0.51, 0.4):
        ours, eager = parameters(), parameters()
        assert torch.equal(clip(ours, limit), fastclip.clip_grad_norm_(eager, limit))
        for a, b in zip(ours, eager, strict=True):
            assert a.grad is b.grad is None or torch.equal(a.grad, b.grad)
    assert len(graphs) == 2


def test_a_whole_step_compiles():
    def step(model, data):
        model(data).square().mean().backward()
        return fastclip.clip_grad_norm_(model.parameters(), 0.1)

    results = []
    for function in (step, torch.compile(step, backend="aot_eager")):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        norm = function(model, torch.randn(3, 4))
        results.append([norm, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("grads", [[], [None]])
def test_no_gradients(grads):
    norm, ops, _ = traced(lambda ps: fastclip.clip_grad_norm_(ps, 1.0), parameters(grads))
    assert (norm.item(), norm.dtype, ops) == (0.0, torch.float32, [])
    traced(lambda ps: fastclip.clip_grads_with_norm_(ps, 1.0, torch.ones(())), parameters(grads))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_listed_twice_is_scaled_twice(backend):
    (p,) = parameters([torch.tensor([3.0, 4.0])])
    norm, _, _ = traced(lambda q: fastclip.clip_grad_norm_([q, q], 1.0), p, backend=backend)
    assert norm.item() == pytest.approx(math.sqrt(50))
    torch.testing.assert_close(p.grad, torch.tensor([3.0, 4.0]) / 50, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_if_nonfinite_raises_from_the_graph_before_a_gradient_changes(backend):
    ours = parameters([torch.ones(2), torch.tensor([1.0, math.nan])])
    clip = torch.compile(
        lambda ps: fastclip.clip_grad_norm_(ps, 0.1, error_if_nonfinite=True),
        fullgraph=True,
        backend=backend,
    )
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
        clip(ours)
    assert ours[0].grad.tolist() == [1.0, 1.0]
    ours[1].grad.fill_(1.0)
    assert clip(ours).item() == pytest.approx(2.0, rel=1e-6)


LISTS = {
    "plain": [torch.randn(3), torch.randn(2, 2)],
    "mixed dtypes": [torch.randn(3).bfloat16(), torch.randn(2).double()],
    "gaps": [torch.randn(8)[::2], torch.randn(3)],
    "complex": [torch.randn(3, dtype=torch.complex64), torch.randn(2)],
    "empty": [torch.zeros(0), torch.ones(2)],
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("p", [2.0, 0.0])
def test_opcheck(kind, p):
    grads = [g.clone(memory_format=torch.preserve_format) for g in LISTS[kind]]
    limit = torch.tensor(0.1, dtype=torch.float64)
    ops = torch.ops.fastclip
    torch.library.opcheck(ops.grad_norm.default, (grads, p))
    torch.library.opcheck(ops.clip_grads_.default, (grads, limit, p))
    torch.library.opcheck(ops.clip_grads_with_norm_.default, (grads, limit, torch.tensor(2.0)))


@pytest.mark.parametrize("norm", [0.0, 1e-7, 0.5, 3.0, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("limit", [0.0, 1e-3, 1.0, 1e9, -1.0, math.inf])
def test_the_norm_that_stands_for_a_limit_on_the_device(norm, limit):
    norm_64, limit_64 = (torch.tensor(x, dtype=torch.float64) for x in (norm, limit))
    expected = (limit_64 / (norm_64 + 1e-6)).clamp(max=1)
    found = (1 / (compiled.norm_for_limit_1(norm_64, limit_64) + 1e-6)).clamp(max=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, equal_nan=True)
