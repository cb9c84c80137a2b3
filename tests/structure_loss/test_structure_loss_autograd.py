"""The structure loss under autograd: the total and its gradients in one call, graphs."""

from __future__ import annotations

import sys

import pytest
import torch
from test_structure_loss import DEFAULTS, LOGITS, needs_native, relative, run, scene

import fastclip
from fastclip.ops.structure_loss import dispatch as op
from fastclip.ops.structure_loss.dispatch import implementation, structure_loss_ref
from fastclip.ops.structure_loss.dispatch import structure_loss as by_owner

pytestmark = pytest.mark.core


def total(function, xs, m, valid, options, upstream):
    """(total, gradients) of a function of (logits, mask, valid, weights, options)."""
    leaves = [x.detach().clone().requires_grad_() for x in xs]
    weights = [0.5, 0.3, 0.2, 1.5][: len(xs)]
    value = function(leaves, m, valid, weights, *options)
    return value.detach(), torch.autograd.grad(value * upstream, leaves)


def total_ref(logits, m, valid, weights, *options):
    loss = structure_loss_ref(logits, m, valid, *options)
    return (loss * torch.tensor(weights, dtype=loss.dtype)[:, None, None]).mean((1, 2)).sum()


def check_total(xs, m, valid, options, upstream):
    """Error of the total and of its gradients: at most twice torch's, or 1e-6."""
    exact = total(total_ref, [x.double() for x in xs], m.double(), valid, options, upstream)
    theirs = total(total_ref, xs, m, valid, options, upstream)
    ours = total(op.structure_loss_total, xs, m, valid, options, upstream)
    assert relative(ours[0], exact[0]) <= max(2 * relative(theirs[0], exact[0]), 1e-6)
    for mine, torchs, true in zip(ours[1], theirs[1], exact[1], strict=True):
        assert mine.dtype == xs[0].dtype
        assert relative(mine, true) <= max(2 * relative(torchs, true), 1e-6)


@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("upstream", [1.0, 0.37, 65536.0])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 70, 33), (2, 2, 40, 64), (16, 1, 9, 20), (1, 1, 1, 1)])
def test_the_total_and_its_gradients_in_one_call(shape, heads, upstream, logits):
    xs, m = scene(shape, logits, heads=heads, soft=True)
    valid = torch.rand(shape) > 0.2
    valid[0, 0, 0, 0] = True
    for v, weighted in ((None, True), (valid, True), (None, False)):
        check_total(xs, m, v, (31, 5.0, 1.0, weighted), upstream)


@needs_native
@pytest.mark.parametrize("shape", [(2, 1, 560, 560), (3, 1, 563, 555)])  # 555: rows not aligned
def test_maps_beyond_the_caches_in_one_call(shape):
    xs, m = scene(shape, heads=3)
    weights = torch.tensor([0.5, 0.3, 0.2])[:, None, None].expand(3, *shape[:2]) / shape[0]
    exact, grads = run(by_owner, xs, m, upstream=weights)
    value, together = total(op.structure_loss_total, xs, m, None, DEFAULTS, 1.0)
    torch.testing.assert_close(value, (exact * weights).sum())
    for one, two in zip(together, grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * two.abs().max().item())


@pytest.mark.parametrize("upstream", [1.0, 0.37, -0.25, 0.0])
def test_bfloat16_gradients_are_rounded_once(upstream):
    xs, m = scene((2, 1, 40, 64), torch.bfloat16)
    (ours,) = total(op.structure_loss_total, xs, m, None, DEFAULTS, upstream)[1]
    (single,) = total(op.structure_loss_total, [xs[0].float()], m, None, DEFAULTS, upstream)[1]
    assert (ours != single.bfloat16()).float().mean() < 0.01  # 0.45 at 0.37, if rounded twice


@pytest.mark.parametrize("logits", LOGITS)
def test_the_total_of_every_dtype_is_the_weighted_mean_of_the_losses(logits):
    xs, m = scene((2, 3, 20, 33), logits, heads=2)
    leaves = [x.requires_grad_() for x in xs]
    value = fastclip.structure_loss(leaves, m, head_weights=(0.7, 0.3))
    each = fastclip.structure_loss(leaves, m, reduction="none")
    expected = (each * torch.tensor([0.7, 0.3]).view(2, 1, 1)).mean((1, 2)).sum()
    torch.testing.assert_close(value, expected)
    grads = torch.autograd.grad(value, leaves)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, leaves), strict=True):
        assert ours.dtype == logits
        torch.testing.assert_close(ours, theirs)


def test_a_logit_changed_before_the_backward_pass_is_an_error():
    (x,), m = scene((1, 1, 8, 8))
    x.requires_grad_()
    y = x * 1
    loss = fastclip.structure_loss(y, m)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_head_weights_may_be_a_tensor_that_learns():
    xs, m = scene((2, 1, 8, 8), heads=2)
    weights = torch.tensor([0.5, 0.5], requires_grad=True)
    fastclip.structure_loss(xs, m, head_weights=weights).backward()
    each = fastclip.structure_loss(xs, m, reduction="none").mean((1, 2))
    torch.testing.assert_close(weights.grad, each)


def test_gradcheck():
    xs, m = scene((2, 1, 6, 7), torch.float64, torch.float64, heads=2, scale=1.0)
    xs = [x.requires_grad_() for x in xs]
    assert torch.autograd.gradcheck(
        lambda *heads: fastclip.structure_loss(heads, m, window=3, head_weights=(0.7, 0.3)), xs
    )


@needs_native
def test_opcheck():
    xs, m = scene((2, 1, 9, 11), heads=2)
    xs = [x.requires_grad_() for x in xs]
    torch.library.opcheck(torch.ops.fastclip.structure_loss, (xs, m, None, 5, 5.0, 1.0, True))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a C++ compiler that inductor finds")
def test_compiles_without_a_graph_break():
    xs, m = scene((2, 1, 20, 24), heads=3)

    def total(*heads):
        return fastclip.structure_loss(heads, m, head_weights=(0.5, 0.3, 0.2))

    def grads(function):
        leaves = [x.clone().requires_grad_() for x in xs]
        loss = function(*leaves)
        return loss, torch.autograd.grad(loss, leaves)

    expected = grads(total)
    got = grads(torch.compile(total, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(got, expected)


def test_a_second_derivative_raises():
    if implementation("cpu")[1]:
        pytest.skip("the reference is differentiable twice")
    (x,), m = scene((1, 1, 8, 8))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(fastclip.structure_loss(x, m), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_backward_twice_over_a_kept_graph():
    (x,), m = scene((1, 1, 8, 8))
    x.requires_grad_()
    loss = fastclip.structure_loss(x, m)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * once)


def test_only_some_heads_need_a_gradient():
    (x, y), m = scene((1, 1, 8, 8), heads=2)
    y.requires_grad_()
    fastclip.structure_loss([x, y], m).backward()
    assert x.grad is None
    assert y.grad.norm() > 0
