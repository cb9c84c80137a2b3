"""How logits, masks and gradients lie, for the Triton kernels on the CPU: see the file beside."""

from __future__ import annotations

import pytest
import torch
from interpreted_structure_loss import triton_owns_the_cpu  # noqa: F401 (a fixture)
from test_structure_loss import check, scene

import fastclip
from fastclip.kernels.structure_loss import launch


@pytest.mark.parametrize("heads", [1, 3, launch.MAX_HEADS + 1])
@pytest.mark.parametrize("mask_too", [True, False])
def test_channels_last_is_read_and_written_as_it_lies(heads, mask_too, monkeypatch):
    xs, m = scene((2, 3, 5, 40), torch.float32, torch.uint8, heads)
    last = [x.to(memory_format=torch.channels_last).requires_grad_() for x in xs]
    m_last = m.to(memory_format=torch.channels_last) if mask_too else m
    rows = [x.clone().requires_grad_() for x in xs]
    expected = torch.autograd.grad(fastclip.structure_loss(rows, m), rows)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", lambda *_: pytest.fail("a copy"))
        patch.setattr(torch.Tensor, "copy_", lambda *_: pytest.fail("a copy"))
        loss = fastclip.structure_loss(last, m_last)
        grads = torch.autograd.grad(loss, last)
    for grad, x, wanted in zip(grads, last, expected, strict=True):
        assert grad.stride() == x.stride()
        torch.testing.assert_close(grad, wanted, rtol=1e-6, atol=0)


def test_heads_that_lie_in_several_ways():
    xs, m = scene((2, 3, 6, 9), torch.float32, torch.uint8, 3)
    mixed = [xs[0].to(memory_format=torch.channels_last), xs[1], xs[2].mT.contiguous().mT]
    wide = torch.zeros(2, 3, 6, 18)
    wide[..., ::2] = xs[0]
    for some in (mixed, mixed[::-1], mixed[1:], [wide[..., ::2]]):
        leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in some]
        views = [wide[..., ::2].requires_grad_()] if len(some) == 1 else leaves
        rows = [x.detach().contiguous().requires_grad_() for x in some]
        expected = torch.autograd.grad(fastclip.structure_loss(rows, m.mT.contiguous().mT), rows)
        grads = torch.autograd.grad(fastclip.structure_loss(views, m), views)
        for grad, wanted in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [1, 31, 33, 64, 65, 127, 129])
def test_short_rows_share_a_program(width):
    check(*scene((2, 1, 21, width), torch.bfloat16, torch.uint8, 3))
    for dtype, most in ((torch.bfloat16, 4), (torch.float32, 2), (torch.float64, 1)):
        rows, block = launch._rows([torch.empty(1, 1, 8, width, dtype=dtype)], width, False)
        assert block == (launch.BLOCK_X if width > 64 else 64)
        assert rows == (most if width > 64 else max(2, most))
