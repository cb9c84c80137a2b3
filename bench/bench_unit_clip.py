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

import baselines
import cases
import measure
import pytest
import torch
from torch import Tensor, nn

import fastclip


def ours_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    fastclip.AGC(clipping, baselines.EPS).clip_(parameters)


def errors(clips: dict, parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """The largest relative error of the clipped gradients, against the reference in float64."""
    copies = [p.grad.clone() for p in parameters]
    exact = [nn.Parameter(p.detach().double()) for p in parameters]
    for p, grad in zip(exact, copies, strict=True):
        p.grad = grad.double()
    baselines.agc_(exact, 0.01)
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
@pytest.mark.parametrize("case", [name for name, _ in cases.on_cpu("agc")])
def bench_agc(case, clipping, benchmark):
    pytest.importorskip("timm")
    parameters = cases.BY_NAME[case].parameters((torch.float32,))
    clips = {
        "torch": baselines.agc_,
        "rewrite": baselines.agc_rewrite_,
        "timm": baselines.timm_agc_,
        "fastclip": ours_,
    }
    found = errors(clips, parameters)
    assert found["fastclip"] < 1e-6
    limit = [0.01 if clipping else 1e9]
    grads = [p.grad for p in parameters]
    elements = sum(g.numel() for g in grads)
    flat, half = torch.randn(2 * elements), torch.randn(elements)

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
        moved_bytes=dict.fromkeys(variants, cases.bytes_moved("agc", grads, clipping)),
        errors=found,
    )
    measure.save("unit_clip_cpu", rows)
    benchmark.pedantic(variants["fastclip"], rounds=3)
