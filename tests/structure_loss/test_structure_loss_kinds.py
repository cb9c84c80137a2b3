"""The IoU formed per pixel, and the weight of positives in the BCE."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_structure_loss import LOGITS, check, needs_native, run, scene
from test_structure_loss_autograd import check_total

import fastclip
from fastclip.ops.structure_loss.dispatch import structure_loss as by_owner
from fastclip.ops.structure_loss.dispatch import structure_loss_ref

pytestmark = pytest.mark.core


def positives(channels, logits=torch.float32):
    real = torch.float64 if logits == torch.float64 else torch.float32
    return torch.linspace(0.25, 4, channels, dtype=torch.float64).to(real)


def kinds(channels, logits=torch.float32):
    """Every option beyond the stock loss, behind window, boundary weight and smooth."""
    for weighted in (True, False):
        for pixel, p in (
            (True, None),
            (True, positives(channels, logits)),
            (False, positives(channels, logits)),
        ):
            yield weighted, pixel, p


def test_against_numbers_worked_by_hand():
    # 1x3 mask 0 1 0, window 3, boundary weight 9: w is 2, 9, 2; logits of sigmoid 1/2, 3/4, 1/2
    m = torch.tensor([[[[0.0, 1.0, 0.0]]]], dtype=torch.float64)
    x = torch.tensor([[[[0.0, math.log(3), 0.0]]]], dtype=torch.float64)
    # u: 1 - 1 / (1/2 + 1) = 1/3 where m = 0, 1 - (3/4 + 1) / (1 + 1) = 1/8 where m = 1
    pixel_iou = (2 / 3 + 9 / 8 + 2 / 3) / 13
    log2, log43 = math.log(2), math.log(4 / 3)
    for bce, positive, expected in (
        ("weighted", None, (2 * log2 + 9 * log43 + 2 * log2) / 13),
        ("mean", None, (log2 + log43 + log2) / 3),
        ("weighted", 5.0, (2 * log2 + 9 * 5 * log43 + 2 * log2) / 13),
        ("mean", 5.0, (log2 + 5 * log43 + log2) / 3),
    ):
        options = {"window": 3, "boundary_weight": 9.0, "bce": bce, "pos_weight": positive}
        loss = fastclip.structure_loss(x, m, iou="pixel", **options)
        assert loss.item() == pytest.approx(expected + pixel_iou, rel=1e-14)
        image_iou = 1 - (0.75 * 9 + 1) / (0.5 * 4 + 9 + 1)
        loss = fastclip.structure_loss(x, m, **options)
        assert loss.item() == pytest.approx(expected + image_iou, rel=1e-14)


def test_iou_per_pixel_is_the_published_formula_of_uacanet():
    (pred,), mask = scene((2, 1, 40, 36), logits=torch.float64)
    mask = mask.double()
    weight = 1 + 5 * torch.abs(F.avg_pool2d(mask, 31, stride=1, padding=15) - mask)
    bce = F.binary_cross_entropy_with_logits(pred, mask, reduction="none")
    s = torch.sigmoid(pred)
    iou = 1 - (s * mask + 1) / (s + mask - s * mask + 1)
    published = (weight * (bce + iou)).sum((2, 3)) / weight.sum((2, 3))
    torch.testing.assert_close(fastclip.structure_loss(pred, mask, iou="pixel"), published.mean())
    assert fastclip.structure_loss(pred, mask) > published.mean() + 0.1


def test_pos_weight_is_torchs():
    (x,), m = scene((2, 3, 20, 24), logits=torch.float64)
    p = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits(x, m.double(), pos_weight=p.view(3, 1, 1))
    iou = fastclip.structure_loss(x, m, bce="mean") - F.binary_cross_entropy_with_logits(
        x, m.double()
    )
    for given in (p, p.view(3, 1, 1), p.view(1, 3, 1, 1), p.tolist(), p.float(), tuple(p.tolist())):
        loss = fastclip.structure_loss(x, m, bce="mean", pos_weight=given)
        torch.testing.assert_close(loss, bce + iou)
    ours = [
        fastclip.structure_loss(x, m, pos_weight=given).item()
        for given in (2, 2.0, [2.0], torch.tensor(2.0), torch.tensor([2]), torch.tensor([2.0] * 3))
    ]
    assert ours == [ours[0]] * 6
    assert fastclip.structure_loss(x, m, pos_weight=1.0).item() == pytest.approx(
        fastclip.structure_loss(x, m).item(), rel=1e-14
    )


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize(
    "shape", [(2, 3, 37, 53), (1, 1, 1, 1), (2, 1, 5, 257), (1, 2, 3, 1025), (1, 2, 70, 47)]
)
def test_kinds_against_float64(shape, logits):
    for kind in kinds(shape[1], logits):
        xs, m = scene(shape, logits, heads=2, soft=True)
        check(xs, m, None, (31, 5.0, 0.7, *kind))
        check(xs, (m > 0.5).to(torch.uint8), torch.rand(shape) > 0.3, (7, 2.0, 1.0, *kind))


@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 70, 33), (4, 2, 40, 64)])
def test_kinds_of_the_total_in_one_call(shape, logits):
    for kind in kinds(shape[1], logits):
        xs, m = scene(shape, logits, heads=3, soft=True)
        for upstream in (1.0, 0.37, 65536.0):
            check_total(xs, m, None, (31, 5.0, 1.0, *kind), upstream)
        check_total(xs, m, torch.rand(shape) > 0.2, (31, 5.0, 1.0, *kind), 0.37)


@pytest.mark.parametrize("logits", [torch.float32, torch.float64])
def test_kinds_at_extreme_logits(logits):
    xs, m = scene((2, 1, 16, 16), logits)
    for kind in kinds(1, logits):
        for value in (90.0, 300.0, 6e4, 1e-6, 0.0):
            check([x * 0 + value * torch.sign(x) for x in xs], m, None, (31, 5.0, 1.0, *kind))


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("shape", [(2, 1, 560, 560), (3, 1, 563, 555)])
def test_kinds_of_maps_beyond_the_caches(shape):
    """The sigmoids of such a step are written past the caches."""
    xs, m = scene(shape, heads=3)
    for kind in ((True, True, None), (False, False, positives(1))):
        check_total(xs, m, None, (31, 5.0, 1.0, *kind), 1.0)


def test_kinds_leave_out_what_is_not_valid():
    xs, m = scene((2, 1, 40, 33), heads=2)
    valid = torch.rand(m.shape) > 0.3
    for kind in kinds(1):
        expected = run(by_owner, xs, m, valid, (31, 5.0, 1.0, *kind))
        spoilt = [torch.where(valid, x, math.nan) for x in xs]
        got = run(by_owner, spoilt, torch.where(valid, m, 255.0), valid, (31, 5.0, 1.0, *kind))
        assert torch.equal(got[0], expected[0])
        assert all(map(torch.equal, got[1], expected[1]))
        nothing = torch.zeros_like(valid)
        for function in (by_owner, structure_loss_ref):
            loss, grads = run(function, xs, m, nothing, (31, 5.0, 1.0, *kind))
            assert (loss == 0).all()
            assert all((grad == 0).all() for grad in grads)


def test_gradcheck_of_every_kind():
    (x,), m = scene((1, 2, 5, 6), torch.float64, soft=True)
    x.requires_grad_()
    for bce in ("weighted", "mean"):
        for iou in ("pixel", "image"):
            options = {"window": 3, "bce": bce, "iou": iou, "pos_weight": [0.5, 3.0]}
            for reduction in ("mean", "none"):
                assert torch.autograd.gradcheck(
                    lambda x, o=options, r=reduction: fastclip.structure_loss(
                        x, m, reduction=r, **o
                    ),
                    x,
                )


def test_kinds_compile_and_pass_opcheck():
    xs, m = scene((2, 2, 16, 20), heads=2)
    leaves = [x.requires_grad_() for x in xs]
    for kind in ((True, True, None), (False, True, positives(2)), (True, False, positives(2))):
        arguments = (leaves, m, None, 5, 5.0, 1.0, *kind)
        torch.library.opcheck(torch.ops.fastclip.structure_loss, arguments)
    weight = torch.tensor([0.5, 3.0])
    for given in (weight, 2.0):

        def step(x, p=given):
            return fastclip.structure_loss(x, m, iou="pixel", pos_weight=p)

        traced = torch.compile(step, fullgraph=True, backend="aot_eager")
        both = [torch.autograd.grad(function(leaves[0]), leaves[0]) for function in (step, traced)]
        torch.testing.assert_close(*both)


def test_kinds_under_torch_func():
    (x,), m = scene((4, 2, 9, 11), torch.float64)
    options = {"iou": "pixel", "bce": "mean", "pos_weight": torch.tensor([0.5, 3.0])}

    def loss(x, m):
        return fastclip.structure_loss(x[None], m[None], **options)

    each = torch.func.vmap(torch.func.grad(loss))(x, m)
    for image in range(4):
        leaf = x[image].clone().requires_grad_()
        (alone,) = torch.autograd.grad(loss(leaf, m[image]), leaf)
        torch.testing.assert_close(each[image], alone)

    def of_weight(p):
        return fastclip.structure_loss(x, m, pos_weight=p)

    with pytest.raises(ValueError, match="vmap cannot map"):
        torch.func.vmap(of_weight)(torch.ones(3, 2))
    with pytest.raises(ValueError, match="detach it"):
        torch.func.grad(of_weight)(torch.ones(2))


def test_a_weight_changed_before_backward_is_noticed():
    (x,), m = scene((2, 1, 8, 8))
    p = torch.ones(1)
    x.requires_grad_()
    loss = fastclip.structure_loss(x, m, pos_weight=p, reduction="none").sum()
    p.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_module_keeps_both():
    (x,), m = scene((2, 2, 12, 14))
    weight = torch.tensor([0.5, 3.0])
    module = fastclip.StructureLoss(iou="pixel", pos_weight=weight)
    expected = fastclip.structure_loss(x, m, iou="pixel", pos_weight=weight)
    assert torch.equal(module(x, m), expected)
    assert "iou='pixel'" in repr(module)
    assert "pos_weight=[0.5, 3.0]" in repr(module)
    assert module.state_dict() == {}
    assert module.double().pos_weight.dtype == torch.float64  # follows the module
    assert "pos_weight=2.0" in repr(fastclip.StructureLoss(pos_weight=2.0))
    with pytest.raises(ValueError, match="pos_weight"):
        fastclip.StructureLoss(pos_weight=-1.0)
    with pytest.raises(ValueError, match="iou"):
        fastclip.StructureLoss(iou="mean")
