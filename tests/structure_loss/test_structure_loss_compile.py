"""The structure loss through inductor: a whole step, options, batches of changing size."""

from __future__ import annotations

import sys

import pytest
import torch
from test_structure_loss import scene
from test_structure_loss_composes import Net, batch

import fastclip

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a C++ compiler that inductor finds"),
]
grads = torch.autograd.grad


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def test_inductor_compiles_model_and_loss_as_one_graph():
    model, (image, mask) = Net(), batch()

    def step(image, mask):
        return fastclip.structure_loss(model(image), mask, head_weights=(0.5, 0.3, 0.2))

    def both(function):
        loss = function(image, mask)
        return loss, grads(loss, list(model.parameters()))

    torch.testing.assert_close(both(torch.compile(step, fullgraph=True)), both(step))


def test_inductor_compiles_a_step_with_valid_and_no_reduction():
    (x,), m = scene((3, 2, 12, 14), torch.bfloat16)
    valid = torch.rand(3, 1, 12, 14) > 0.3
    x.requires_grad_()

    def total(x):
        each = fastclip.structure_loss(x * 2, m, valid=valid, bce="mean", reduction="none")
        return (each * torch.arange(6.0).view(3, 2)).sum()

    expected, got = total(x), torch.compile(total, fullgraph=True)(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(grads(got, x), grads(expected, x))


def test_a_dynamic_batch_compiles_once():
    loss = torch.compile(fastclip.structure_loss, fullgraph=True)

    def run(count, function):
        (x,), m = scene((count, 1, 10, 12))
        x.requires_grad_()
        for tensor in (x, m):
            torch._dynamo.mark_dynamic(tensor, 0)
        value = function(x, m)
        return value, grads(value, x)

    run(3, loss)
    with torch.compiler.set_stance("fail_on_recompile"):
        got = run(5, loss)
    torch.testing.assert_close(got, run(5, fastclip.structure_loss))
