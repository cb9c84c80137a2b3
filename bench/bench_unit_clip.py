"""Adaptive gradient clipping (AGC) on the CPU: fastclip against plain torch, timm, and a rewrite.

    pytest bench/bench_unit_clip.py --benchmark-enable

`torch` is the reference: a few calls for each parameter; `rewrite` is the best of plain torch that
we know, what does not need a parameter's own shape in foreach calls. `read` is a threaded read of
as many bytes as weights and gradients have, the floor where nothing is clipped; `read + scale` adds
torch's in-place multiplication of the gradients' bytes. `error` is the largest relative error
against float64. torch.compile unrolls a graph of 382 shapes and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import measure
import pytest
import torch
from torch import Tensor, nn

import fastclip
from fastclip.ops.unit_clip import dispatch as op

EPS = 1e-3
CASES = {
    "transfuse_s (382 tensors, 26.2M)": "transfuse_s",
    "1 x 26.2M": [(26_200_000,)],
    "1000 x 1000": [(10, 100)] * 1000,
}


def reference_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    for p in parameters:
        op.clip_units_ref_(p, p.grad, clipping, EPS)


@torch.no_grad()
def rewrite_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    grads = [p.grad for p in parameters]
    limits = [op._unit_norms(p) for p in parameters]
    norms = [op._unit_norms(g) for g in grads]
    torch._foreach_clamp_min_(limits, EPS)
    torch._foreach_mul_(limits, clipping)
    torch._foreach_clamp_min_(norms, 1e-6)
    torch._foreach_div_(limits, norms)
    for grad, factor in zip(grads, limits, strict=True):
        if (factor < 1).any():
            grad.mul_(factor.clamp_(max=1.0))


def timm_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    timm_agc = pytest.importorskip("timm.utils.agc")
    timm_agc.adaptive_clip_grad(parameters, clipping, EPS)


def ours_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    fastclip.AGC(clipping, EPS).clip_(parameters)


def parameters_of(case: str) -> list[nn.Parameter]:
    shapes = CASES[case]
    if isinstance(shapes, str):
        transfuse = pytest.importorskip("fastclip.transfuse", reason="needs fastclip-torch[train]")
        shapes = [tuple(p.shape) for p in transfuse.create_model(shapes).parameters()]
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape)
    return parameters


def errors(clips: dict, parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """The largest relative error of the clipped gradients, against the reference in float64."""
    copies = [p.grad.clone() for p in parameters]
    exact = [nn.Parameter(p.detach().double()) for p in parameters]
    for p, grad in zip(exact, copies, strict=True):
        p.grad = grad.double()
    reference_(exact, 0.01)
    found = {}
    for name, clip_ in clips.items():
        for p, grad in zip(parameters, copies, strict=True):
            p.grad = grad.clone()
        clip_(parameters, 0.01)
        found[name] = max(relative(p.grad, e.grad) for p, e in zip(parameters, exact, strict=True))
    return found


def relative(x: Tensor, exact: Tensor) -> float:
    return ((x - exact).abs() / exact.abs().clamp(min=1e-30)).max().item()


@pytest.mark.parametrize("clipping", [False, True], ids=["unclipped", "clipping"])
@pytest.mark.parametrize("case", CASES)
def bench_agc(case, clipping, benchmark):
    parameters = parameters_of(case)
    clips = {"torch": reference_, "rewrite": rewrite_, "timm": timm_, "fastclip": ours_}
    found = errors(clips, parameters)
    assert found["fastclip"] < 1e-6
    limit = [0.01 if clipping else 1e9]
    moved = sum(p.numel() for p in parameters) * 4
    flat, half = torch.randn(moved // 2), torch.randn(moved // 4)

    def step(clip_):
        def run() -> None:
            limit[0] *= 0.99 if clipping else 1  # every step clips anew, a little
            clip_(parameters, limit[0])

        return run

    variants = {name: step(clip_) for name, clip_ in clips.items()}
    floor = "read + scale" if clipping else "read"
    variants[floor] = (lambda: (flat.sum(), half.mul_(0.999))) if clipping else flat.sum
    medians = measure.interleaved_ms(variants, repeats=15)
    mode = "clipping" if clipping else "not clipping"
    rows = measure.rows(
        "agc",
        f"{case}, {mode}",
        "float32",
        medians,
        baseline="torch",
        moved_bytes=dict.fromkeys(variants, moved * (4 if clipping else 2)),
        errors=found,
    )
    measure.save("unit_clip_cpu", rows)
    benchmark.pedantic(variants["fastclip"], rounds=3)
