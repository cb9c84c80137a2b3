"""The structure loss under torch.func: vmap, grad, per-sample gradients, jacobians."""

from __future__ import annotations

import pytest
import torch
from test_structure_loss import scene
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, vmap

import fastclip
from fastclip.ops.structure_loss.dispatch import implementation

IS_KERNEL = implementation("cpu")[1] == ""  # the reference composes with every transform
pytestmark = pytest.mark.core


def loss(x, m, **options):
    return fastclip.structure_loss(x, m, window=5, **options)


def samples(count=4, heads=1):
    """Logits and masks with one more dimension in front: [count, 2, 1, 12, 14]."""
    xs, m = scene((2 * count, 1, 12, 14), heads=heads)
    shape = (count, 2, 1, 12, 14)
    return [x.view(shape) for x in xs], m.view(shape)


def gradient(x, m):
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, m), leaf)[0]


def test_vmap_is_a_loop():
    (x,), m = samples()
    expected = torch.stack([loss(*pair) for pair in zip(x, m, strict=True)])
    torch.testing.assert_close(vmap(loss)(x, m), expected)


def test_vmap_over_another_dimension_with_heads_and_valid():
    xs, m = samples(heads=2)
    valid = torch.rand(2, 1, 12, 14) > 0.3

    def each(x, y, m):
        return loss([x, y], m, valid=valid, reduction="none")

    expected = torch.stack([each(*pair) for pair in zip(*xs, m, strict=True)], 3)  # [2, 2, 1, 4]
    moved = [x.movedim(0, 2) for x in xs]
    got = vmap(each, in_dims=(2, 2, 0), out_dims=3)(*moved, m)
    torch.testing.assert_close(got, expected)


def test_vmap_with_one_mask_for_all():
    (x,), m = samples()
    expected = torch.stack([loss(one, m[0]) for one in x])
    torch.testing.assert_close(vmap(loss, in_dims=(0, None))(x, m[0]), expected)


def test_backward_through_vmap():
    (x,), m = samples()
    leaf = x.clone().requires_grad_()
    vmap(loss)(leaf, m).sum().backward()
    expected = torch.stack([gradient(*pair) for pair in zip(x, m, strict=True)])
    torch.testing.assert_close(leaf.grad, expected)


def test_func_grad_is_autograds():
    (x,), m = samples()
    torch.testing.assert_close(grad(loss)(x[0], m[0]), gradient(x[0], m[0]))


def test_per_sample_gradients():
    (x,), m = samples()
    expected = torch.stack([gradient(*pair) for pair in zip(x, m, strict=True)])
    torch.testing.assert_close(vmap(grad(loss))(x, m), expected)


def test_per_sample_gradients_of_weights():
    (x,), m = samples()
    model = torch.nn.Conv2d(1, 1, 3, padding=1)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def of_weights(weights, x, m):
        return loss(functional_call(model, weights, (x,)), m)

    got = vmap(grad(of_weights), in_dims=(None, 0, 0))(weights, x, m)
    for row, (image, mask) in enumerate(zip(x, m, strict=True)):
        expected = torch.autograd.grad(loss(model(image), mask), list(model.parameters()))
        torch.testing.assert_close([got[name][row] for name in weights], list(expected))


def test_jacobian_is_zero_between_images():
    (x,), m = samples()
    jacobian = jacrev(lambda x: loss(x, m[0], reduction="none"))(x[0])  # [2, 1, 2, 1, 12, 14]
    assert jacobian[0, 0, 1].count_nonzero() == jacobian[1, 0, 0].count_nonzero() == 0
    torch.testing.assert_close(jacobian.sum((0, 1)) / 2, gradient(x[0], m[0]))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batched_upstream_gradients(reduction, dtype):
    xs, m = samples(heads=2)
    leaves = [x[0].to(dtype).requires_grad_() for x in xs]
    weights = {"head_weights": (0.7, 0.3)} if reduction == "mean" else {}
    value = loss(leaves, m[0], reduction=reduction, **weights)
    upstream = torch.randn(3, *value.shape, dtype=value.dtype)
    got = torch.autograd.grad(value, leaves, upstream, retain_graph=True, is_grads_batched=True)
    for row, one in enumerate(upstream):
        expected = torch.autograd.grad(value, leaves, one, retain_graph=True)
        torch.testing.assert_close([batch[row] for batch in got], list(expected))


def test_float16_gradients_meet_their_loss_scale_before_they_underflow():
    (x,), m = scene((2, 1, 192, 256), torch.float16)
    scale = 65536.0
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, m) * scale, leaf)
    torch.testing.assert_close(grad(lambda x: loss(x, m) * scale)(x), expected)
    value = loss(leaf, m)
    upstream = torch.tensor([scale, 2 * scale])
    (got,) = torch.autograd.grad(value, leaf, upstream, is_grads_batched=True)
    torch.testing.assert_close(got, torch.stack([expected, 2 * expected]))


def test_vectorized_jacobian():
    (x,), m = samples()
    one_by_one, at_once = (
        torch.autograd.functional.jacobian(
            lambda x: loss(x, m[0], reduction="none"), x[0], vectorize=vectorize
        )
        for vectorize in (False, True)
    )
    torch.testing.assert_close(at_once, one_by_one)


@pytest.mark.skipif(not IS_KERNEL, reason="the reference has forward-mode derivatives")
def test_forward_mode_raises_rather_than_being_wrong():
    (x,), m = samples()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
            loss(dual, m[0])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda x: loss(x, m[0]), (x[0],), (torch.ones_like(x[0]),))


@pytest.mark.skipif(not IS_KERNEL, reason="the reference is differentiable twice")
def test_a_hessian_raises_rather_than_being_wrong():
    (x,), m = samples()
    with pytest.raises((RuntimeError, NotImplementedError)):
        grad(lambda x: grad(loss)(x, m[0]).sum())(x[0])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.hessian(lambda x: loss(x, m[0]))(x[0])
