"""Logits and masks of every memory: none, freed, negated, expanded, subclasses of plain data."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from test_structure_loss import check, run, scene, wide_scene

import fastclip
from fastclip.ops.structure_loss import dispatch as op
from fastclip.ops.structure_loss.dispatch import structure_loss as by_owner

pytestmark = pytest.mark.core
SHAPE = (2, 3, 12, 20)


def losses(x, m, **options):
    """By the eager path and by the op."""
    total = fastclip.structure_loss(x, m, **options)
    each = fastclip.structure_loss(x, m, reduction="none", **options)
    return total.item(), each.mean().item()


def in_a_process(code):
    """What a process of its own prints: what it tests once ended the process by a signal."""
    start = "import torch, fastclip\nM = (torch.rand(2, 3, 12, 20) > 0.5).float()\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


def test_zero_tensors_are_zeros():
    out = in_a_process("""
Z = torch._efficientzerotensor(2, 3, 12, 20)
zeros = torch.zeros(2, 3, 12, 20)
for reduction in ("mean", "none"):
    for bad, good in (((Z, M), (zeros, M)), ((M, Z), (M, zeros))):
        ours, right = (fastclip.structure_loss(*p, reduction=reduction) for p in (bad, good))
        assert torch.equal(ours, right)
    assert (fastclip.structure_loss(M, M, valid=Z, reduction=reduction) == 0).all()
    weight = torch._efficientzerotensor(3)
    ours = fastclip.structure_loss(M, M, pos_weight=weight, reduction=reduction)
    assert torch.equal(ours, fastclip.structure_loss(M, M, pos_weight=0.0, reduction=reduction))
    for dtype in (torch.float32, torch.float16, torch.float64):
        x = torch.zeros(2, 3, 12, 20, dtype=dtype, requires_grad=True)
        fastclip.structure_loss(x, M, reduction=reduction).sgn().sum().backward()
        assert (x.grad == 0).all()  # sgn's gradient is a tensor without memory
print("all right")
""")
    assert "all right" in out


def test_a_freed_storage_is_named():
    names = ["logits", "mask", "mask", "logits", "valid", "pos_weight"]
    text = in_a_process("""
made = {
    "logits": lambda: M.clone(),
    "mask": lambda: M.clone(),
    "mask, long": lambda: M.long(),
    "logits, strided": lambda: M.transpose(2, 3).contiguous().transpose(2, 3),
    "valid": lambda: torch.ones(2, 1, 12, 20),
    "pos_weight": lambda: torch.ones(3),
}
for kind, make in made.items():
    for left in (0, 4):
        for reduction in ("mean", "none"):
            bad = make()
            bad.untyped_storage().resize_(left)
            given = {"logits": M, "mask": M, "reduction": reduction, kind.split(",")[0]: bad}
            try:
                fastclip.structure_loss(**given)
                print("no error for", kind)
            except ValueError as error:
                print(error)
""")
    lines = text.splitlines()
    assert [line.split(" of shape")[0] for line in lines] == [n for n in names for _ in range(4)]
    assert all("freed" in line for line in lines)


def test_a_storage_freed_before_the_backward_pass_is_named():
    text = in_a_process("""
for reduction in ("mean", "none"):
    x = M.half().requires_grad_()  # float16 waits for the upstream gradient
    loss = fastclip.structure_loss(x, M, reduction=reduction).sum()
    x.data.untyped_storage().resize_(0)
    try:
        loss.backward()
    except ValueError as error:
        print(error)
""")
    assert text.count("logits of shape") == 2


def test_the_core_refuses_memory_that_is_not_there():
    if not op.cpu.takes("cpu"):
        pytest.skip("no core")
    text = in_a_process("""
from fastclip import native
null = torch._efficientzerotensor(2, 3, 12, 20)
options = (31, 5.0, 1.0, True)
loss, sums = torch.empty(1, 2, 3), torch.empty(1, 2, 3, 4, dtype=torch.float64)
for index in range(3):
    tensors = [M, M, M]
    tensors[index] = null
    logits, mask, valid = tensors
    try:
        native.core.structure_loss_forward([logits], mask, valid, *options, loss, sums)
    except (ValueError, NotImplementedError) as error:
        print(error)
    try:
        native.core.structure_loss_total(
            [logits], mask, valid, *options, [1.0], sums, [null if index == 2 else M.clone()]
        )
    except (ValueError, NotImplementedError) as error:
        print(error)
""")
    assert len(text.splitlines()) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_negative_bits(dtype):
    (x,), m = scene(SHAPE, dtype)
    right = losses(x, m, valid=m + 1, pos_weight=torch.tensor([2.0]))
    lazy = torch._neg_view(-x)
    assert losses(lazy, m, valid=m + 1, pos_weight=torch.tensor([2.0])) == right
    lazies = [torch._neg_view(-t) for t in (x, m, m + 1, torch.tensor([2.0]))]
    assert losses(*lazies[:2], valid=lazies[2], pos_weight=lazies[3]) == right
    imaginary = torch.complex(x.float(), -x.float()).conj().imag  # how such a view comes about
    assert losses(imaginary, m) == losses(x.float(), m)
    grads = []
    for given in (x.clone(), torch._neg_view(-x)):
        leaf = given.detach().requires_grad_()
        fastclip.structure_loss(leaf, m).backward(torch._neg_view(torch.tensor(-2.0)))
        each = fastclip.structure_loss(leaf, m, reduction="none")
        each.backward(torch._neg_view(-torch.ones_like(each)))
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_strides_of_zero_and_overlaps():
    (x,), m = scene(SHAPE)
    for given in (
        x[:1, :1, :1].expand(SHAPE),
        torch.ones(()).expand(SHAPE),
        torch.randn(200).as_strided(SHAPE, (7, 1, 3, 2)),
        x.contiguous(memory_format=torch.channels_last),
    ):
        assert losses(given, m) == losses(given.clone(memory_format=torch.contiguous_format), m)
        leaf = given.detach().requires_grad_()
        (grad,) = torch.autograd.grad(fastclip.structure_loss(leaf, m), leaf)
        (right,) = run(by_owner, [given.contiguous()], m, upstream=torch.full((1, 2, 3), 1 / 6))[1]
        torch.testing.assert_close(grad, right)


class Named(torch.Tensor):
    """Plain data under another name."""


def test_subclasses_that_are_plain_data():
    (x,), m = scene(SHAPE)
    right = losses(x, m, valid=m + 1, pos_weight=2.0, head_weights=None)
    named = torch.tensor([2.0]).as_subclass(Named)
    wrap = [lambda t: t.as_subclass(Named)]
    try:
        from torchvision import tv_tensors

        wrap += [tv_tensors.Mask, tv_tensors.Image]
    except ImportError:
        pass  # `Named` stands for them
    for a in wrap:
        assert losses(a(x), a(m), valid=a(m + 1), pos_weight=named) == right
        assert losses(x, a(m), valid=m + 1, pos_weight=2.0) == right
        assert fastclip.structure_loss(
            [a(x), x], m, head_weights=(named * 0 + 0.25).expand(2) * named
        ).item() == pytest.approx(fastclip.structure_loss(x, m).item())
    leaf = x.clone().requires_grad_()
    loss = fastclip.structure_loss((leaf * 2).as_subclass(Named), m)
    loss.backward()
    assert type(loss) is type(leaf.grad) is torch.Tensor
    again = x.clone().requires_grad_()
    fastclip.structure_loss(again * 2, m).backward()
    assert torch.equal(leaf.grad, again.grad)


def test_no_images_have_a_mean_of_nan_and_an_empty_gradient():
    in_a_process("""
from itertools import product
shapes = [(0, 1, 4, 5), (2, 0, 4, 5), (0, 0, 4, 5)]
kinds = [{}, {"bce": "mean"}, {"iou": "pixel", "pos_weight": 2.0}, {"head_weights": (0.5, 0.3)}]
dtypes = [torch.float32, torch.float16, torch.float64]
for shape, dtype, options, grad in product(shapes, dtypes, kinds, (True, False)):
    for valid in (None, torch.ones(shape)):
        xs = [torch.zeros(shape, dtype=dtype, requires_grad=grad) for _ in range(2)]
        mask = torch.zeros(shape)
        loss = fastclip.structure_loss(xs, mask, valid=valid, **options)
        assert loss.isnan()
        if "head_weights" not in options:
            each = fastclip.structure_loss(xs, mask, valid=valid, reduction="none", **options)
            assert each.shape == (2, *shape[:2])
            loss = loss + each.sum()
        if grad:
            loss.backward()
            assert all(x.grad.shape == x.shape and x.grad.dtype == dtype for x in xs)
""")


@pytest.mark.parametrize("shape", [(2, 1, 0, 5), (2, 1, 5, 0), (0, 1, 0, 0)])
def test_no_pixels_is_an_error_that_names_the_size(shape):
    x = torch.zeros(shape)
    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match=rf"logits must have rows and columns.*{shape[2]}, "):
            fastclip.structure_loss(x, x, reduction=reduction)


@pytest.mark.parametrize("width", [1025, 3000, 100_000])
@pytest.mark.parametrize("kind", [(True,), (False,), (True, True), (False, True)])
def test_wide_images_keep_their_digits(width, kind):
    xs, m = wide_scene(width)
    check(xs, m, None, (31, 5.0, 1.0, *kind))
    check(xs, m, torch.ones_like(m).bool(), (101, 5.0, 1.0, *kind))
    check([x.transpose(2, 3) for x in xs], m.transpose(2, 3), None, (31, 5.0, 1.0, *kind))


def test_masks_of_float8():
    (x,), m = scene(SHAPE)
    assert losses(x, m.to(torch.float8_e4m3fn)) == losses(x, m)


def test_windows_wider_than_any_integer_of_the_core():
    (x,), m = scene(SHAPE, soft=True)
    wide = fastclip.structure_loss(x, m, window=2**63 - 1)
    exact = op.structure_loss_ref([x.double()], m.double(), None, 2**63 - 1, 5.0, 1.0, True)
    torch.testing.assert_close(wide.double(), exact.mean())
    with pytest.raises(ValueError, match="window"):
        fastclip.structure_loss(x, m, window=2**63 + 1)
