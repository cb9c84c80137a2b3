"""The structure loss's Triton kernels run on the CPU, by Triton's interpreter.

Triton decides when it is imported whether it interprets, so test_structure_loss_triton.py runs this
file in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from test_structure_loss import DEFAULTS, check, run, scene, wide_scene
from test_structure_loss_autograd import check_total

import fastclip
from fastclip.kernels.structure_loss import launch
from fastclip.ops.structure_loss import cpu
from fastclip.ops.structure_loss import dispatch as op
from fastclip.ops.structure_loss import triton as gpu

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_structure_loss_triton.py"

LOGITS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MASKS = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
)


@pytest.fixture(autouse=True, scope="module")
def triton_owns_the_cpu():
    """The whole way is tested: public function, dispatch, autograd, launchers, kernels."""
    library = torch.library.Library("fastclip", "IMPL")
    library.impl("structure_loss", gpu.forward, "CPU", allow_override=True)
    library.impl("structure_loss_backward", gpu.backward, "CPU", allow_override=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "DEVICES", ("cpu",))
        patch.setattr(cpu, "takes", lambda device: False)
        assert op.implementation("cpu") == ("triton", "")
        torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
        yield
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_dtype_pair(logits, mask):
    check(*scene((2, 1, 7, 19), logits, mask, soft=mask.is_floating_point))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (1, 1, 1, 9), (1, 1, 9, 1), (2, 3, 5, 8), (1, 1, 33, 31), (1, 2, 6, 131)],
)
@pytest.mark.parametrize(
    ("window", "weighted"), [(1, True), (3, True), (31, True), (31, False), (301, True)]
)
def test_sizes_and_windows(shape, window, weighted):
    check(*scene(shape, heads=2, soft=True), options=(window, 5.0, 1.0, weighted))


@pytest.mark.parametrize(("logits", "window"), [(torch.float32, 301), (torch.float64, 31)])
def test_several_blocks_each_way(logits, window):
    strip_y = launch.STRIP_BYTES // 4
    shape = (1, 1, strip_y + 12, launch.BLOCK_X + 27)
    assert window < 301 or window // 2 > max(strip_y, launch.BLOCK_X)
    assert shape[2] > 16 * launch.ROW_BYTES // logits.itemsize  # groups that are read at a time
    check(*scene(shape, logits, soft=True), options=(window, 5.0, 1.0, True))


@pytest.mark.parametrize("heads", [1, 3, launch.MAX_HEADS, launch.MAX_HEADS + 1, 9])
def test_heads_share_the_mask(heads):
    xs, m = scene((1, 2, 5, 9), heads=heads)
    check(xs, m, options=(5, 5.0, 1.0, heads % 2 == 0))
    together = run(op.structure_loss, xs, m, upstream=torch.ones(heads, 1, 2))
    for x, loss, grad in zip(xs, *together, strict=True):
        alone = run(op.structure_loss, [x], m, upstream=torch.ones(1, 1, 2))
        assert torch.equal(alone[0][0], loss)
        assert torch.equal(alone[1][0], grad)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("value", [90.0, 300.0, 6e4, 1e-6])
def test_extreme_logits(logits, value):
    xs, m = scene((2, 1, 8, 16), logits)
    check([x * 0 + value * torch.sign(x) for x in xs], m)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mask", [0.0, 1.0, 0.5])
def test_nonfinite_logits_do_as_the_reference(bad, mask):
    xs, m = scene((2, 1, 9, 20))
    xs[0][0, 0, 4, 7], m[0, 0, 4, 7] = bad, mask
    ours, theirs = run(op.structure_loss, xs, m), run(op.structure_loss_ref, xs, m)
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)
    torch.testing.assert_close(ours[1][0], theirs[1][0], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.uint16])
@pytest.mark.parametrize("channels", [1, 2])
def test_pixels_that_are_not_valid_count_nowhere(dtype, channels):
    xs, m = scene((2, 2, 11, 18), heads=2)
    valid = (torch.rand(2, channels, 11, 18) > 0.3).to(dtype).expand_as(m)
    options = (5, 5.0, 1.0, True)
    check(xs, m, valid, options)
    expected = run(op.structure_loss, xs, m, valid, options)
    for x in xs:
        x[valid == 0] = math.nan
    m[valid == 0] = math.nan
    got = run(op.structure_loss, xs, m, valid, options)
    assert torch.equal(got[0], expected[0])
    for mine, true in zip(got[1], expected[1], strict=True):
        assert torch.equal(mine, true)
        assert (mine[valid == 0] == 0).all()


@pytest.mark.parametrize("weighted", [True, False])
def test_an_image_with_no_valid_pixel_has_loss_zero(weighted):
    xs, m = scene((2, 1, 8, 12))
    valid = torch.ones_like(m)
    valid[0] = 0
    loss, (grad,) = run(op.structure_loss, xs, m, valid, (5, 5.0, 1.0, weighted))
    assert loss[0, 0].item() == 0
    assert (grad[0] == 0).all()
    assert grad[1].isfinite().all()
    check(xs, m, valid, (5, 5.0, 1.0, weighted))


@pytest.mark.parametrize("shape", [(0, 1, 5, 6), (2, 0, 5, 6), (2, 1, 0, 6)])
def test_no_pixels(shape):
    loss, (grad,) = run(op.structure_loss, [torch.randn(shape)], torch.ones(shape))
    assert loss.shape == (1, *shape[:2])
    assert (loss == 0).all()
    assert grad.shape == shape


def test_strides():
    xs, m = scene((3, 2, 10, 14), heads=2, soft=True)
    xs = [x.transpose(2, 3) for x in xs]
    m = m.to(memory_format=torch.channels_last).transpose(2, 3)
    valid = (torch.rand(3, 1, 14, 10) > 0.3).transpose(2, 3).reshape(3, 1, 10, 14)
    check(xs, m, valid.transpose(2, 3).expand_as(m), (5, 5.0, 1.0, True))
    upstream = torch.linspace(-1, 2, 12).view(2, 3, 2).transpose(0, 2).flip(0).transpose(0, 2)
    exact = run(op.structure_loss_ref, [x.double() for x in xs], m.double(), upstream=upstream)
    ours = run(op.structure_loss, xs, m, upstream=upstream)
    for mine, true in zip(ours[1], exact[1], strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("pixel", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_iou_per_pixel_and_weight_of_positives(logits, pixel, weighted):
    shape = (2, 2, 7, 19)
    xs, m = scene(shape, logits, heads=2, soft=True)
    valid = torch.rand(shape) > 0.3
    positive = torch.linspace(0.3, 4, shape[1], dtype=torch.float64).to(
        torch.float64 if logits == torch.float64 else torch.float32
    )
    for p, v in ((positive, valid), (None, None)):
        options = (5, 5.0, 0.7, weighted, pixel, p)
        check(xs, m, v, options)
        if logits != torch.bfloat16:  # which the interpreter cuts, and does not round
            check_total(xs, m, v, options, 0.37)
    valid[0] = False
    loss, grads = run(op.structure_loss, xs, m, valid, options)
    assert (loss[:, 0] == 0).all()
    assert all((grad[0] == 0).all() and grad.isfinite().all() for grad in grads)


def test_wide_images_keep_their_digits():
    assert launch.PIECE * launch.BLOCK_X < 5000
    check(*wide_scene(20_000))


def test_options():
    xs, m = scene((1, 1, 12, 17), torch.float64, soft=True)
    for weight, smooth in ((0.0, 1.0), (0.1, 1e-3), (7.3, 100.0)):
        check(xs, m, options=(7, weight, smooth, True))


def test_bit_equal_reruns():
    xs, m = scene((2, 1, 20, 140), torch.bfloat16, heads=3, soft=True)
    first, second = run(op.structure_loss, xs, m), run(op.structure_loss, xs, m)
    assert torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1], second[1]))


def test_public_function_and_frozen_heads():
    xs, m = scene((2, 1, 8, 12), heads=3)
    leaves = [x.clone().requires_grad_(i != 1) for i, x in enumerate(xs)]
    loss = fastclip.structure_loss(leaves, m, head_weights=(0.5, 0.3, 0.2))
    loss.backward()  # the upstream gradient is an expanded scalar
    doubles = [x.double().requires_grad_() for x in xs]
    terms = op.structure_loss_ref(doubles, m, None, *DEFAULTS)
    exact = (terms.mean(dim=(1, 2)) * torch.tensor([0.5, 0.3, 0.2])).sum()
    exact.backward()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    assert leaves[1].grad is None
    for i in (0, 2):
        torch.testing.assert_close(leaves[i].grad.double(), doubles[i].grad, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("logits", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("heads", "upstream"), [(1, 1.0), (3, 0.37), (4, 65536.0)])
def test_the_total_and_its_gradients_by_the_eager_road(heads, upstream, logits):
    xs, m = scene((2, 2, 5, 9), logits, heads=heads, soft=True)
    valid = (torch.rand(2, 1, 5, 9) > 0.2).expand_as(m)
    for options, v in ((DEFAULTS, None), ((5, 2.0, 0.5, False), valid)):
        check_total(xs, m, v, options, upstream)


def test_more_heads_than_a_launch_takes():
    xs, m = scene((1, 2, 5, 9), torch.float64, heads=launch.MAX_HEADS + 2)
    weights = [0.5 - 0.1 * i for i in range(len(xs))]
    leaves = [x.requires_grad_() for x in xs]
    ours = op.structure_loss_total(leaves, m, None, weights, *DEFAULTS)
    each = op.structure_loss_ref(leaves, m, None, *DEFAULTS).mean((1, 2))
    exact = sum(weight * loss for weight, loss in zip(weights, each, strict=True))
    torch.testing.assert_close(ours, exact)
    both = (torch.autograd.grad(loss, leaves) for loss in (ours, exact))
    torch.testing.assert_close(*both)


def test_second_derivatives_and_batched_gradients_of_the_total_go_through_the_op():
    (x,), m = scene((1, 1, 6, 9), torch.float64)
    x.requires_grad_()
    loss = fastclip.structure_loss(x, m)
    assert loss.grad_fn.name() == "_TotalBackward"  # the eager path
    (true,) = torch.autograd.grad(loss, x, retain_graph=True)
    factors = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (each,) = torch.autograd.grad(loss, x, factors, retain_graph=True, is_grads_batched=True)
    torch.testing.assert_close(each, factors.view(2, 1, 1, 1, 1) * true)
    (recorded,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        recorded.sum().backward()


def test_opcheck():
    xs, m = scene((1, 1, 6, 9), heads=2)
    leaves = [x.requires_grad_() for x in xs]
    torch.library.opcheck(torch.ops.fastclip.structure_loss, (leaves, m, None, 5, 5.0, 1.0, True))
