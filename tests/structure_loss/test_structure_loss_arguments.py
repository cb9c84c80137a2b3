"""The structure loss's arguments: what each means, and what is said of a wrong one."""

from __future__ import annotations

import pytest
import torch
from test_structure_loss import scene

import fastclip

pytestmark = pytest.mark.core


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


@pytest.mark.parametrize("kind", ["tensor", "list", "parameter", "parameters", "module list"])
def test_head_weights_get_their_gradient(kind):
    xs, m = scene((2, 1, 8, 8), heads=2)
    each = fastclip.structure_loss(xs, m, reduction="none").mean((1, 2))
    if kind in ("tensor", "parameter"):
        given = torch.tensor([0.5, 2.0], requires_grad=True)
        given = leaves = torch.nn.Parameter(given.detach()) if kind == "parameter" else given
        leaves = [leaves]
    else:
        leaves = [torch.nn.Parameter(torch.tensor(w)) for w in (0.5, 2.0)]
        given = torch.nn.ParameterList(leaves) if kind == "module list" else leaves
    module = fastclip.StructureLoss(head_weights=given)
    assert len(list(module.parameters())) == (0 if kind == "tensor" else len(leaves))
    for function in (module, lambda x, m: fastclip.structure_loss(x, m, head_weights=given)):
        loss = function([x.requires_grad_() for x in xs], m)
        grads = torch.autograd.grad(loss, leaves)
        torch.testing.assert_close(torch.cat([g.reshape(-1) for g in grads]), each.detach())
        torch.testing.assert_close(loss.detach(), 0.5 * each[0] + 2 * each[1])


def test_the_module_says_how_it_weighs():
    assert "head_weights=(0.5, 2.0)" in repr(fastclip.StructureLoss(head_weights=[0.5, 2.0]))
    module = fastclip.StructureLoss(head_weights=torch.tensor([0.5, 2.0]))
    assert "head_weights=[0.5, 2.0]" in repr(module)
    assert module.state_dict() == {}
    assert "reduction='none'" in repr(fastclip.StructureLoss(reduction="none"))


X, M = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)


def call(**options):
    heads = options.pop("heads", X)
    return lambda: fastclip.structure_loss(heads, options.pop("mask", M), **options)


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
    "head weights (2, 2)": (
        call(heads=[X, X], head_weights=torch.ones(2, 2)),
        ValueError,
        r"head_weights .*\(2, 2\)",
    ),
    "head weights 0-d": (call(head_weights=torch.ones(())), ValueError, "head_weights"),
    "head weights (1, 1)": (call(head_weights=torch.ones(1, 1)), ValueError, "head_weights"),
    "head weights complex": (
        call(head_weights=torch.ones(1, dtype=torch.complex64)),
        ValueError,
        "complex",
    ),
    "head weights a number": (call(head_weights=2.0), TypeError, "head_weights"),
    "head weights of rows": (call(head_weights=[[1.0]]), TypeError, "head_weights"),
    "head weights of tensors": (
        call(head_weights=[torch.ones(2)]),
        ValueError,
        "head_weights",
    ),
    "wide window": (call(window=2**63 + 1), ValueError, "window"),
    "text": (call(boundary_weight="a"), TypeError, "boundary_weight"),
    "no smooth": (call(smooth=None), TypeError, "smooth"),
    "iou": (call(iou="sum"), ValueError, "pixel"),
    "sparse logits": (call(heads=X.to_sparse()), ValueError, "logits .*sparse"),
    "sparse mask": (call(mask=M.to_sparse()), ValueError, "mask .*sparse"),
    "sparse valid": (call(valid=M.to_sparse()), ValueError, "valid .*sparse"),
    "quantised mask": (
        call(mask=torch.quantize_per_tensor(M, 1.0, 0, torch.quint8)),
        ValueError,
        "mask .*quint8",
    ),
    "negative pos_weight": (call(pos_weight=-1), ValueError, "pos_weight"),
    "nan pos_weight": (call(pos_weight=float("nan")), ValueError, "pos_weight"),
    "text pos_weight": (call(pos_weight="4"), TypeError, "pos_weight|number"),
    "pos_weight count": (call(pos_weight=[1, 2]), ValueError, "per channel"),
    "pos_weight shape": (call(pos_weight=torch.ones(8)), ValueError, r"pos_weight .*\(8,\)"),
    "pos_weight grad": (
        call(pos_weight=torch.ones(1, requires_grad=True)),
        ValueError,
        "detach",
    ),
    "pos_weight device": (call(pos_weight=torch.ones(1, device="meta")), ValueError, "meta"),
    "pos_weight complex": (call(pos_weight=torch.ones(1) + 0j), ValueError, "pos_weight"),
    "module": (lambda: fastclip.StructureLoss(window=2), ValueError, "odd"),
    "valid": (lambda: fastclip.structure_loss(X, M, valid=M[:1]), ValueError, "valid"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_say_what_was_expected(case):
    call, kind, text = WRONG[case]
    with pytest.raises(kind, match=text):
        call()
