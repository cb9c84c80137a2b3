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
