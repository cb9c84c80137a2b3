"""The structure loss: its reference by hand, its kernels against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastclip
from fastclip import native
from fastclip.ops.structure_loss.dispatch import structure_loss as by_owner
from fastclip.ops.structure_loss.dispatch import structure_loss_ref

pytestmark = pytest.mark.core

LOGITS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MASKS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool)
DEFAULTS = (31, 5.0, 1.0, True)
needs_native = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")


def scene(shape, logits=torch.float32, mask=torch.float32, heads=1, scale=3.0, soft=False):
    """Logits and a mask of blobs; values that every logits dtype holds exactly."""
    torch.manual_seed(sum(shape) + heads)
    xs = [(torch.randn(shape) * scale).to(logits) for _ in range(heads)]
    field = F.interpolate(torch.randn(shape[0], shape[1], 4, 4), shape[2:], mode="bilinear")
    m = field.sigmoid() if soft else (field > 0).float()
    return xs, m.to(mask)


def wide_scene(width):
    """A row in which every pixel rounds the same way, so that errors of a sum add up."""
    x = torch.full((1, 1, 1, width), 0.37)
    return [x], (torch.arange(width).expand_as(x) % 40 < 13).float()


def run(function, xs, m, valid=None, options=DEFAULTS, upstream=None):
    """(loss, gradients) of the op-level functions: [heads, B, C] and one per head."""
    leaves = [x.detach().clone().requires_grad_() for x in xs]
    loss = function(leaves, m, valid, *options)
    weights = torch.linspace(0.5, 2, loss.numel()).view_as(loss) if upstream is None else upstream
    (loss * weights.to(loss.dtype)).sum().backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300)).item()


def check(xs, m, valid=None, options=DEFAULTS):
    """Error against float64: at most twice torch's float32 error, or 1e-6; then one rounding."""
    dtype = xs[0].dtype
    exact = run(structure_loss_ref, [x.double() for x in xs], m.double(), valid, options)
    single = torch.float64 if dtype == torch.float64 else torch.float32
    theirs = run(structure_loss_ref, [x.to(single) for x in xs], m, valid, options)
    ours = run(by_owner, xs, m, valid, options)
    floor = 1e-12 if dtype == torch.float64 else 1e-6
    assert ours[0].dtype == single
    assert relative(ours[0], exact[0]) <= max(2 * relative(theirs[0], exact[0]), floor)
    for mine, torchs, true in zip(ours[1], theirs[1], exact[1], strict=True):
        assert mine.dtype == dtype
        info = torch.finfo(dtype)
        bound = max(2 * relative(torchs, true), floor) + (info.eps if dtype != single else 0)
        subnormal = info.smallest_normal * info.eps * math.sqrt(true.numel())
        assert (mine.double() - true).norm() <= bound * true.norm() + subnormal


def test_reference_against_numbers_worked_by_hand():
    # 1x3 mask 0 1 0, window 3: box sums 1 1 1 of area 9, so |1/9 - m| = 1/9, 8/9, 1/9
    m = torch.tensor([[[[0.0, 1.0, 0.0]]]], dtype=torch.float64)
    x = torch.zeros(1, 1, 1, 3, dtype=torch.float64)  # sigmoid 1/2, BCE log 2
    w = [1 + 9 / 9, 1 + 9 * 8 / 9, 1 + 9 / 9]  # boundary weight 9: 2, 9, 2
    intersection, total = 0.5 * w[1], 0.5 * sum(w) + w[1]  # 4.5, 15.5
    expected = math.log(2) + 1 - (intersection + 1) / (total - intersection + 1)
    got = structure_loss_ref([x], m, None, 3, 9.0, 1.0, True)
    assert got.item() == pytest.approx(expected, rel=1e-14)
    assert expected == pytest.approx(math.log(2) + 1 - 5.5 / 12)
    x[0, 0, 0, 1] = math.log(3)  # BCE of the middle: log(4/3)
    weighted = structure_loss_ref([x], m, None, 3, 9.0, 1.0, True).item()
    mean = structure_loss_ref([x], m, None, 3, 9.0, 1.0, False).item()
    log2, log43 = math.log(2), math.log(4 / 3)
    iou = 1 - (0.75 * 9 + 1) / (0.5 * 4 + 0.75 * 9 + 9 - 0.75 * 9 + 1)
    assert weighted == pytest.approx((4 * log2 + 9 * log43) / 13 + iou, rel=1e-14)
    assert mean == pytest.approx((2 * log2 + log43) / 3 + iou, rel=1e-14)


def test_reference_is_the_published_formula():
    (x,), m = scene((2, 1, 40, 36), logits=torch.float64)
    m = m.double()
    weit = 1 + 5 * torch.abs(F.avg_pool2d(m, kernel_size=31, stride=1, padding=15) - m)
    wbce = F.binary_cross_entropy_with_logits(x, m, reduction="none")
    wbce = (weit * wbce).sum(dim=(2, 3)) / weit.sum(dim=(2, 3))
    pred = torch.sigmoid(x)
    inter = ((pred * m) * weit).sum(dim=(2, 3))
    union = ((pred + m) * weit).sum(dim=(2, 3))
    wiou = 1 - (inter + 1) / (union - inter + 1)
    torch.testing.assert_close(fastclip.structure_loss(x, m), (wbce + wiou).mean())


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_dtype_pair(logits, mask):
    check(*scene((2, 1, 37, 53), logits, mask, soft=mask.is_floating_point))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (1, 1, 1, 9),
        (3, 2, 8, 5),
        (1, 3, 31, 33),
        (2, 1, 65, 127),
        (16, 1, 4, 300),
        (1, 1, 300, 2),
        (1, 1, 70, 47),  # on the CPU strips of 1024 pixels and chunks of 256
        (2, 1, 5, 257),
        (1, 1, 3, 1025),
    ],
)
@pytest.mark.parametrize("window", [1, 3, 31, 101])
def test_sizes_and_windows(shape, window):
    for weighted in (True, False):
        check(*scene(shape, heads=2, soft=True), options=(window, 5.0, 1.0, weighted))


@pytest.mark.parametrize("heads", [1, 3, 5])
def test_heads_share_the_mask(heads):
    xs, m = scene((2, 2, 24, 40), heads=heads)
    check(xs, m)
    together = by_owner(xs, m, None, *DEFAULTS)
    alone = [by_owner([x], m, None, *DEFAULTS)[0] for x in xs]
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize("logits", LOGITS)
def test_extreme_logits(logits):
    xs, m = scene((2, 1, 16, 16), logits)
    for value in (90.0, 300.0, 1e4, 6e4, 1e-6, 0.0):
        check([x * 0 + value * torch.sign(x) for x in xs], m)


def test_all_half_at_352_does_not_overflow():
    xs, m = scene((1, 1, 352, 352), torch.float16, torch.float16)
    assert fastclip.structure_loss(xs[0], m).isfinite()
    check(xs, m)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_logits_do_as_the_reference(bad):
    xs, m = scene((2, 1, 9, 20))
    xs[0][0, 0, 4, 7] = bad
    ours, theirs = run(by_owner, xs, m), run(structure_loss_ref, xs, m)
    # NaN or infinity, as inf - inf or inf * 0 comes first in the formula's order
    assert torch.equal(ours[0].isfinite(), theirs[0].isfinite())
    assert ours[0].isfinite().tolist() == [[[False], [True]]]
    assert ours[1][0][1].isfinite().all()
    assert ours[1][0][0].isnan().any() == theirs[1][0][0].isnan().any()


def test_pixels_that_are_not_valid_count_nowhere():
    xs, m = scene((2, 1, 40, 33), heads=2)
    valid = torch.rand(m.shape) > 0.3
    valid[1, 0, :5] = False
    check(xs, m, valid)
    expected = run(by_owner, xs, m, valid)
    for x in xs:
        x[~valid] = math.nan
    m[~valid] = 255.0
    got = run(by_owner, xs, m, valid)
    assert torch.equal(got[0], expected[0])
    for mine, true in zip(got[1], expected[1], strict=True):
        assert torch.equal(mine, true)
        assert (mine[~valid] == 0).all()


def test_an_image_with_no_valid_pixel_has_loss_zero():
    xs, m = scene((2, 1, 12, 12))
    valid = torch.ones_like(m)
    valid[0] = 0
    for function in (by_owner, structure_loss_ref):
        loss, (grad,) = run(function, xs, m, valid)
        assert loss[0, 0, 0] == 0
        assert loss[0, 1, 0] > 0
        assert (grad[0] == 0).all()
        assert grad.isfinite().all()


STRIDED = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], dim=3)[..., : x.shape[3]],
    "expanded mask": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("kind", STRIDED)
def test_memory_layouts(kind):
    (x,), m = scene((2, 3, 17, 21))
    check([x if kind == "expanded mask" else STRIDED[kind](x)], STRIDED[kind](m))


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 40), st.integers(1, 70)),
    st.sampled_from(LOGITS),
    st.sampled_from(MASKS),
    st.sampled_from([1, 5, 31, 63]),
    st.booleans(),
    st.booleans(),
    st.floats(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_any_problem_strategy(shape, logits, mask, window, weighted, ignore, boundary):
    xs, m = scene(shape, logits, mask, soft=mask.is_floating_point)
    valid = (torch.rand(shape) > 0.2) if ignore else None
    check(xs, m, valid, (window, boundary, 1.0, weighted))
