"""The structure loss: its reference by hand, its kernels against float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastclip
from fastclip import native
from fastclip.ops import structure_loss as op
from fastclip.ops.structure_loss import owner, structure_loss_ref
from fastclip.ops.structure_loss import structure_loss as by_owner

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
    for value in (90.0, 300.0, 1e4, 6e4, 1e-6):
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


def total(function, xs, m, valid, options, upstream):
    """(total, gradients) of a function of (logits, mask, valid, weights, options)."""
    leaves = [x.detach().clone().requires_grad_() for x in xs]
    weights = [0.5, 0.3, 0.2, 1.5][: len(xs)]
    value = function(leaves, m, valid, weights, *options)
    return value.detach(), torch.autograd.grad(value * upstream, leaves)


def total_ref(logits, m, valid, weights, *options):
    loss = structure_loss_ref(logits, m, valid, *options)
    return (loss * torch.tensor(weights, dtype=loss.dtype)[:, None, None]).mean((1, 2)).sum()


@pytest.mark.parametrize("upstream", [1.0, 0.37, 65536.0])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 70, 33), (2, 2, 40, 64), (16, 1, 9, 20), (1, 1, 1, 1)])
def test_the_total_and_its_gradients_in_one_call(shape, heads, upstream):
    xs, m = scene(shape, heads=heads, soft=True)
    valid = torch.rand(shape) > 0.2
    valid[0, 0, 0, 0] = True
    for v, weighted in ((None, True), (valid, True), (None, False)):
        options = (31, 5.0, 1.0, weighted)
        doubles = [x.double() for x in xs]
        exact = total(total_ref, doubles, m.double(), v, options, upstream)
        theirs = total(total_ref, xs, m, v, options, upstream)
        ours = total(op.structure_loss_total, xs, m, v, options, upstream)
        assert relative(ours[0], exact[0]) <= max(2 * relative(theirs[0], exact[0]), 1e-6)
        for mine, torchs, true in zip(ours[1], theirs[1], exact[1], strict=True):
            assert relative(mine, true) <= max(2 * relative(torchs, true), 1e-6)


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


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "v3", "v4"])
def test_every_instruction_set_level(isa):
    """Runs this file's comparisons at the level (or the best one below it here)."""
    only = "dtype_pair or sizes or heads or extreme or nonfinite or valid or one_call"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "FASTCLIP_ISA": isa}
    result = subprocess.run([*command, "-k", only], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


@needs_native
def test_threads_do_not_change_a_bit():
    xs, m = scene((3, 1, 200, 50), heads=2)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            value, together = total(op.structure_loss_total, xs, m, None, DEFAULTS, 1.0)
            losses, grads = run(by_owner, xs, m)
            runs.append((torch.cat([losses.flatten(), value[None]]), [*grads, *together]))
    finally:
        torch.set_num_threads(before)
    for loss, grads in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, runs[0][1], strict=True))


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
    if owner("cpu")[1]:
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


def test_reductions_and_head_weights():
    xs, m = scene((2, 3, 10, 12), heads=3)
    each = fastclip.structure_loss(xs, m, reduction="none")
    assert each.shape == (3, 2, 3)
    assert fastclip.structure_loss(xs[0], m, reduction="none").shape == (2, 3)
    weights = (0.5, 0.3, 0.2)
    expected = sum(w * loss.mean() for w, loss in zip(weights, each, strict=True))
    torch.testing.assert_close(fastclip.structure_loss(xs, m, head_weights=weights), expected)
    torch.testing.assert_close(fastclip.structure_loss(xs, m), each.mean((1, 2)).sum())
    torch.testing.assert_close(fastclip.structure_loss(xs[:1], m), each[0].mean())
    module = fastclip.StructureLoss(head_weights=weights)
    torch.testing.assert_close(module(xs, m), expected)
    assert "window=31" in repr(module)


def test_valid_may_be_one_map_per_image():
    xs, m = scene((2, 3, 10, 12))
    valid = torch.rand(2, 1, 10, 12) > 0.5
    torch.testing.assert_close(
        fastclip.structure_loss(xs[0], m, valid=valid),
        fastclip.structure_loss(xs[0], m, valid=valid.expand_as(m)),
    )


X, M = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
WRONG = {
    "no tensor": (lambda: fastclip.structure_loss("x", M), TypeError, "logits"),
    "no heads": (lambda: fastclip.structure_loss([], M), TypeError, "logits"),
    "no mask": (lambda: fastclip.structure_loss(X, None), TypeError, "mask"),
    "three dims": (lambda: fastclip.structure_loss(X[0], M), ValueError, r"\[B, C, H, W\]"),
    "integer logits": (lambda: fastclip.structure_loss(X.int(), M), ValueError, "floating"),
    "mask shape": (lambda: fastclip.structure_loss(X, M[:, 0]), ValueError, "mask must have"),
    "mask grad": (
        lambda: fastclip.structure_loss(X, M.clone().requires_grad_()),
        ValueError,
        "detach",
    ),
    "mask device": (lambda: fastclip.structure_loss(X, M.to("meta")), ValueError, "meta"),
    "complex mask": (lambda: fastclip.structure_loss(X, M + 0j), ValueError, "real"),
    "heads differ": (
        lambda: fastclip.structure_loss([X, X.double()], M),
        ValueError,
        "heads must share",
    ),
    "even window": (lambda: fastclip.structure_loss(X, M, window=30), ValueError, "odd"),
    "float window": (lambda: fastclip.structure_loss(X, M, window=31.0), TypeError, "window"),
    "negative weight": (
        lambda: fastclip.structure_loss(X, M, boundary_weight=-1),
        ValueError,
        "boundary_weight",
    ),
    "smooth": (lambda: fastclip.structure_loss(X, M, smooth=0), ValueError, "smooth"),
    "bce": (lambda: fastclip.structure_loss(X, M, bce="sum"), ValueError, "weighted"),
    "reduction": (lambda: fastclip.structure_loss(X, M, reduction="sum"), ValueError, "none"),
    "head weights": (
        lambda: fastclip.structure_loss([X, X], M, head_weights=(1,)),
        ValueError,
        "per head",
    ),
    "module": (lambda: fastclip.StructureLoss(window=2), ValueError, "odd"),
    "valid": (lambda: fastclip.structure_loss(X, M, valid=M[:1]), ValueError, "valid"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_say_what_was_expected(case):
    call, kind, text = WRONG[case]
    with pytest.raises(kind, match=text):
        call()


@needs_native
@pytest.mark.parametrize("wrong", ["dtype", "size", "shape", "layout", "count"])
def test_the_core_checks_what_it_dereferences(wrong):
    xs, m = scene((2, 1, 8, 8))
    loss, sums = torch.empty(1, 2, 1), torch.empty(1, 2, 1, 4, dtype=torch.float64)
    arguments = [xs, m, None, *DEFAULTS, loss, sums]
    changed = {
        "dtype": (8, sums.float()),
        "size": (7, loss[:, :1]),
        "shape": (1, m[:, :, :4]),
        "layout": (1, m.transpose(2, 3)),
        "count": (0, []),
    }
    index, value = changed[wrong]
    arguments[index] = value
    with pytest.raises(ValueError, match=r"must|wrong"):
        native.core.structure_loss_forward(*arguments)


@needs_native
@pytest.mark.parametrize("wrong", ["factors", "grads", "grad size", "dtype", "sums"])
def test_the_core_checks_what_the_total_writes(wrong):
    xs, m = scene((2, 1, 8, 8))
    sums = torch.empty(1, 2, 1, 4, dtype=torch.float64)
    changed = {
        "factors": (7, [1.0, 1.0]),
        "grads": (9, [None, None]),
        "grad size": (9, [torch.empty(2, 1, 8, 7)]),
        "dtype": (0, [xs[0].half()]),
        "sums": (8, torch.empty(2)),
    }
    arguments = [xs, m, None, *DEFAULTS, [1.0], sums, [torch.empty_like(xs[0])]]
    index, value = changed[wrong]
    arguments[index] = value
    with pytest.raises(ValueError, match=r"must|wrong|only"):
        native.core.structure_loss_total(*arguments)
