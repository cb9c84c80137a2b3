"""Long lists on the CPU: threads read gradients while the list of them is still being made."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastclip
from fastclip import native

pytestmark = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
THREADS = (1, 2, 5)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def parameters_of(sizes, dtypes=(torch.float32,)) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(len(sizes))
    parameters = []
    for i, size in enumerate(sizes):
        grad = torch.randn(size, generator=generator).to(dtypes[i % len(dtypes)])
        parameters.append(nn.Parameter(torch.empty_like(grad)))
        parameters[-1].grad = grad
    return parameters


LISTS = {
    "alike": parameters_of([1000] * 1000),
    "mixed": parameters_of(
        [1 + i * 37 % 2500 for i in range(3000)], [torch.float32, torch.bfloat16, torch.float64]
    ),
    "small, then large": parameters_of([5] * 40 + [2000] * 900 + [3_000_000] + [7] * 3),
    "large, then small": parameters_of([1_500_000] + [10] * 2000),
}


@pytest.mark.parametrize("p", [2.0, 1.0, math.inf, 3.5])
@pytest.mark.parametrize("case", LISTS)
def test_norm_and_clipped_gradients_are_the_same_on_any_number_of_threads(case, p):
    parameters = LISTS[case]
    if p == 3.5:
        parameters = parameters[:1000]
    grads = [q.grad.clone() for q in parameters]
    exact = torch.cat([g.double().flatten() for g in grads]).norm(p)
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        for q, grad in zip(parameters, grads, strict=True):
            q.grad = grad.clone()
        unclipped = fastclip.clip_grad_norm_(parameters, 1e12, p)
        assert all(torch.equal(q.grad, g) for q, g in zip(parameters, grads, strict=True))
        norm = fastclip.clip_grad_norm_(parameters, float(exact) / 2, p)
        assert unclipped == norm == fastclip.get_total_norm(grads, p)
        results.append((norm, [q.grad for q in parameters]))
    torch.testing.assert_close(norm.double(), exact, rtol=1e-6, atol=0)
    for norm, scaled in results[1:]:
        assert norm == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(scaled, results[0][1], strict=True))
    for scaled, grad in zip(results[0][1], grads, strict=True):
        factor = 0.5 * grad.double()
        torch.testing.assert_close(scaled.double(), factor, rtol=1e-2, atol=1e-6)


def test_parameters_without_gradients_among_many():
    parameters = parameters_of([1000] * 2000)
    for q in parameters[::3]:
        q.grad = None
    grads = [q.grad for q in parameters if q.grad is not None]
    exact = torch.cat(grads).double().norm().item()
    assert fastclip.clip_grad_norm_(parameters, 1.0).item() == pytest.approx(exact, rel=1e-6)


def test_a_gradient_listed_twice_is_scaled_as_torch_does():
    parameters = parameters_of([2000] * 1000)
    parameters[700].grad = parameters[3].grad
    theirs = [q.grad.clone() for q in parameters]
    theirs[700] = theirs[3]
    for q, grad in zip(copies := parameters_of([2000] * 1000), theirs, strict=True):
        q.grad = grad
    expected = nn.utils.clip_grad_norm_(copies, 1.0)
    torch.testing.assert_close(fastclip.clip_grad_norm_(parameters, 1.0), expected)
    for q, copy in zip(parameters, copies, strict=True):
        torch.testing.assert_close(q.grad, copy.grad)


def test_what_is_not_for_the_kernels_at_the_end_of_many():
    parameters = parameters_of([1000] * 1000)
    parameters[-1] = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    parameters[-1].grad = torch.tensor([0j, 3j])
    before = torch.cat([q.grad for q in parameters[:-1]])
    exact = math.hypot(before.double().norm(), 3.0)
    assert fastclip.clip_grad_norm_(parameters, 1.0).item() == pytest.approx(exact, rel=1e-5)
    after = torch.cat([q.grad for q in parameters[:-1]])
    torch.testing.assert_close(after, before / exact, rtol=1e-4, atol=0)


class Fails(nn.Parameter):
    """A parameter without a gradient to ask for."""

    @property
    def grad(self):
        raise LookupError("no gradient today")


def test_an_error_while_listing_is_the_callers():
    parameters = [*parameters_of([1000] * 1000), Fails(torch.zeros(3)), *parameters_of([5])]
    before = [q.grad.clone() for q in parameters[:1000]]
    with pytest.raises(LookupError, match="today"):
        fastclip.clip_grad_norm_(parameters, 1.0)
    assert all(torch.equal(q.grad, g) for q, g in zip(parameters, before, strict=False))


def test_more_memory_than_there_is_room_for_chunks():
    """Over 1024 chunks of 256 KB more than tensors: the rest is listed when all before is read."""
    ones = torch.ones(140_000_000, dtype=torch.bfloat16)
    tensors = [*(torch.ones(50_000) for _ in range(64)), ones, *(torch.ones(1) for _ in range(9))]
    count = 64 * 50_000 + ones.numel() + 9
    assert fastclip.get_total_norm(tensors).item() == pytest.approx(math.sqrt(count), rel=1e-6)
    parameters = [nn.Parameter(torch.empty_like(t)) for t in tensors]
    for q, t in zip(parameters, tensors, strict=True):
        q.grad = t
    fastclip.clip_grad_norm_(parameters, math.sqrt(count) / 2)
    assert all((t == 0.5).all() for t in tensors[-3:])
    assert ones.min() == ones.max() == 0.5
