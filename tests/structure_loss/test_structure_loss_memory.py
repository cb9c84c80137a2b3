"""The structure loss allocates its gradients and nothing that grows with the image."""

from __future__ import annotations

import bench_structure_loss_memory as bench
import memory
import pytest
import torch
from test_structure_loss import scene

import fastclip
from fastclip import native

SHAPE = (16, 1, 192, 256)
SMALL = 64 * 1024  # sums of every image, head and channel; a map of SHAPE is 3 MB in float32
needs_native = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
pytestmark = pytest.mark.core


def step(heads, mask, **options):
    """(after forward, whole step, bytes of the gradients)."""
    leaves = [head.requires_grad_() for head in heads]
    forward, whole = memory.traced_step(
        lambda: fastclip.structure_loss(leaves, mask, **options),
        lambda loss: torch.autograd.grad(loss, leaves),
    )
    return forward, whole, sum(x.numel() * x.element_size() for x in leaves)


def test_the_meter_counts_what_is_known():
    def known():
        first = torch.zeros(1000)  # 4000 B
        second = first + 1  # 8000 B
        del first
        return second.double()  # 4000 + 8000 B

    result, seen = memory.traced(known)
    assert (seen.peak, seen.end) == (12000, 8000)
    assert result.nbytes == 8000


@needs_native
@pytest.mark.parametrize("mask", [torch.float32, torch.uint8, torch.bool, torch.bfloat16])
@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16])
def test_forward_and_backward_allocate_the_gradients_only(logits, mask):
    for options in ({}, {"bce": "mean", "window": 101, "reduction": "mean"}):
        forward, whole, gradient = step(*scene(SHAPE, logits, mask, heads=3), **options)
        assert gradient <= whole.peak <= gradient + SMALL
        assert forward.peak <= gradient + SMALL  # gradients may be made in either pass
        assert whole.end <= gradient + SMALL


@needs_native
def test_several_channels_allocate_the_gradients_only():
    _, whole, gradient = step(*scene((4, 3, 192, 256), heads=2))
    assert whole.peak <= gradient + SMALL


@needs_native
def test_valid_costs_a_byte_a_pixel_at_most():
    heads, mask = scene(SHAPE, heads=3)
    valid = torch.rand(SHAPE) > 0.3
    _, whole, gradient = step(heads, mask, valid=valid)
    assert whole.peak <= gradient + mask.numel() + SMALL


@needs_native
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_no_map_is_allocated(mode):
    heads, mask = scene(SHAPE, heads=3)
    heads = [head.requires_grad_() for head in heads]
    with mode():
        _, seen = memory.traced(lambda: fastclip.structure_loss(heads, mask))
    assert seen.peak <= SMALL


@needs_native
def test_heads_without_a_gradient_keep_nothing():
    heads, mask = scene(SHAPE, heads=3)
    heads[1].requires_grad_()
    forward, _ = memory.traced_step(lambda: fastclip.structure_loss(heads, mask), lambda _: None)
    assert forward.end <= heads[1].nbytes + SMALL


@needs_native
def test_heads_without_a_gradient_cost_no_map():
    heads, mask = scene(SHAPE, heads=3)
    wanted = heads[1].requires_grad_()
    _, whole = memory.traced_step(
        lambda: fastclip.structure_loss(heads, mask),
        lambda loss: torch.autograd.grad(loss, wanted),
    )
    assert whole.peak <= wanted.nbytes + SMALL


@needs_native
@pytest.mark.skipif(not memory.PEAK_RESET.exists(), reason="needs /proc")
def test_native_buffers_are_rows_not_maps():
    """The resident memory of a process, which native allocations cannot escape."""
    map_bytes = 4 * 16 * 192 * 256
    gradient = 3 * map_bytes
    ours = bench.process_peak_bytes("fastclip", environment={"OMP_NUM_THREADS": "4"})
    assert gradient * 0.9 < ours < gradient + map_bytes // 3
    assert bench.process_peak_bytes("rewrite") > gradient + map_bytes
