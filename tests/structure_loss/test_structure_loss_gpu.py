"""The structure loss on a GPU: what only a device shows, and every dtype once more."""

from __future__ import annotations

import pytest
import torch
from test_structure_loss import DEFAULTS, check, run, scene
from test_structure_loss_autograd import check_total

import fastclip
from fastclip.ops.structure_loss import dispatch as op

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.fixture(autouse=True)
    def _everything_there(self):
        with torch.device("cuda"):
            yield

    @pytest.mark.parametrize("logits", [F32, F64, BF16, torch.float16])
    @pytest.mark.parametrize("mask", [F32, torch.uint8, torch.bool, BF16, torch.int64])
    def test_against_float64(self, logits, mask):
        for shape in ((2, 1, 352, 352), (1, 3, 37, 53), (1, 1, 1, 1), (1, 1, 300, 1025)):
            xs, m = scene(shape, logits, mask, 3, soft=mask.is_floating_point)
            check(xs, m)
            check_total(xs, m, None, DEFAULTS, 0.37)
            check(xs, m, torch.rand(shape) > 0.3, (101, 5.0, 1.0, False))

    def test_nonfinite_logits_do_as_the_reference(self):
        xs, m = scene((3, 1, 40, 40))
        for image, bad in enumerate((float("nan"), float("inf"), -float("inf"))):
            xs[0][image, 0, 4, 7] = bad
        ours, theirs = run(op.structure_loss, xs, m), run(op.structure_loss_ref, xs, m)
        torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)

    def test_graph_replay_follows_its_inputs(self):
        xs, m = scene((2, 1, 64, 80), BF16, heads=3)
        leaves = [x.requires_grad_() for x in xs]

        def step():
            loss = fastclip.structure_loss(leaves, m, head_weights=(0.5, 0.3, 0.2))
            return loss, *torch.autograd.grad(loss, leaves)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step()
        with torch.no_grad():
            for leaf in leaves:
                leaf.normal_()
            m.copy_(1 - m)
        graph.replay()
        for replayed, fresh in zip(outputs, step(), strict=True):
            assert torch.equal(replayed, fresh)

    def test_no_sync_and_bit_equal_reruns(self):
        xs, m = scene((4, 1, 352, 352), BF16, torch.uint8, 3)
        first = run(op.structure_loss, xs, m, upstream=torch.ones(3, 4, 1))
        torch.cuda.set_sync_debug_mode("error")
        try:
            second = run(op.structure_loss, xs, m, upstream=torch.ones(3, 4, 1))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(first[0], second[0])
        assert all(map(torch.equal, first[1], second[1]))

    def test_compile_autocast_and_opcheck(self):
        (x,), m = scene((2, 1, 64, 64))
        convolution = torch.nn.Conv2d(1, 1, 3, padding=1)

        def step(x):
            with torch.autocast("cuda", torch.bfloat16):
                logits = convolution(x)
                assert logits.dtype == BF16
                return fastclip.structure_loss(logits, m)

        traced = torch.compile(step, fullgraph=True)(x)
        torch.testing.assert_close(traced, step(x), rtol=1e-2, atol=0)  # of a bf16 convolution
        step(x).backward()
        assert convolution.weight.grad.isfinite().all()
        inputs = ([x.requires_grad_()], m, None, *DEFAULTS)
        torch.library.opcheck(torch.ops.fastclip.structure_loss, inputs)

    def test_more_than_2_to_the_31_pixels(self):
        if torch.cuda.mem_get_info()[0] < 40 * 2**30:
            pytest.skip("needs 40 GB of device memory")
        x = torch.randn(2050, 1, 1024, 1024, dtype=BF16).requires_grad_()
        m = x.detach() > 0
        loss = fastclip.structure_loss(x, m, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), x)
        last = x.detach()[-1:].clone().requires_grad_()
        alone = fastclip.structure_loss(last, m[-1:], reduction="none")
        assert torch.equal(loss[-1:], alone)
        assert torch.equal(grad[-1:], torch.autograd.grad(alone.sum(), last)[0])
