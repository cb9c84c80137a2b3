"""The structure loss with the IoU formed at every pixel (UACANet's), forward and backward.

    pytest bench/bench_structure_loss_pixel.py --benchmark-enable

`eager` is plain torch as UACANet's training code has it, once per head; `compiled` the same under
torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence

import cases
import measure
import torch
import torch.nn.functional as F
from bench_structure_loss import gradients, largest_error, scene, step
from torch import Tensor

import fastclip

CASE = cases.LOSSES["3 heads, 16x1x192x256"]


def eager(heads: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Weighted BCE and an IoU per pixel, averaged with the weights; a weight map for every head."""
    losses = []
    for logits in heads:
        w = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
        bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        s = logits.sigmoid()
        iou = 1 - (s * mask + 1) / (s + mask - s * mask + 1)
        losses.append(((w * (bce + iou)).sum((2, 3)) / w.sum((2, 3))).mean())
    return torch.stack(losses).sum()


def fused(heads: Sequence[Tensor], mask: Tensor) -> Tensor:
    return fastclip.structure_loss(heads, mask, iou="pixel")


def bench_pixel_iou(benchmark):
    heads, mask = scene(CASE.shape, CASE.heads, torch.float32)
    torch._dynamo.reset()
    losses = {"eager": eager, "compiled": torch.compile(eager), "fastclip": fused}
    doubles = [head.detach().double().requires_grad_() for head in heads]
    exact = gradients(eager, doubles, mask.double(), None)
    errors = {
        name: largest_error(gradients(loss, heads, mask, None), exact)
        for name, loss in losses.items()
    }
    assert errors["fastclip"] < 1e-6
    variants = {name: step(loss, heads, mask) for name, loss in losses.items()}
    medians = measure.interleaved_ms(variants, repeats=5, warmup=1)
    moved = {"fastclip": CASE.bytes_moved(torch.float32)}
    rows = measure.rows(
        "structure_loss, pixel",
        CASE.name,
        "float32",
        medians,
        baseline="eager",
        moved_bytes=moved,
        errors=errors,
    )
    measure.save("structure_loss_cpu", rows)
    benchmark.pedantic(variants["fastclip"], rounds=3)
