"""AutoClip and ZClip on the CPU: fastclip against the published code, over TransFuse_S.

    pytest bench/bench_adaptive.py --benchmark-enable

`plain` is the published code (baselines.py). AutoClip's keeps every norm and sorts them all at each
step, so it is measured after HISTORY steps. The gradients stay as they are: norms of equal size are
no outliers, and a percentile of equal norms clips nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import baselines
import cases
import measure
import pytest
import torch

import fastclip

HISTORY = 10_000  # norms that AutoClip has seen


def autoclips() -> tuple[baselines.PlainAutoClip, fastclip.AutoClip]:
    """Both with the same past, of norms that the gradients measured here are below."""
    plain, ours = baselines.PlainAutoClip(100), fastclip.AutoClip(percentile=100)
    norms = (1e6 + torch.rand(HISTORY, generator=torch.Generator().manual_seed(0))).tolist()
    plain.norms = list(norms)
    one = torch.nn.Parameter(torch.zeros(()))
    for norm in norms:
        one.grad = torch.tensor(norm)
        ours.clip_([one])
    return plain, ours


def zclips() -> tuple[baselines.PlainZClip, fastclip.ZClip]:
    """Both with the options that their paper recommends."""
    return baselines.PlainZClip(), fastclip.ZClip()


@pytest.mark.parametrize(
    ("bench", "clippers"),
    [("autoclip", autoclips), ("zclip", zclips)],
    ids=["autoclip", "zclip"],
)
def bench_adaptive(bench: str, clippers: Callable, benchmark):
    parameters = cases.BY_NAME[cases.TRANSFUSE_S].parameters((torch.float32,))
    plain, ours = clippers()
    before = [p.grad.clone() for p in parameters]
    variants = {
        "plain": lambda: plain.clip_(parameters),
        "fastclip": lambda: ours.clip_(parameters),
    }
    medians = measure.interleaved_ms(variants, repeats=40, warmup=30)  # past ZClip's warm-up
    for p, grad in zip(parameters, before, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=0)
    case = f"{cases.TRANSFUSE_S}, not clipping"
    measure.save("unit_clip_cpu", measure.rows(bench, case, "float32", medians, baseline="plain"))
    benchmark.pedantic(variants["fastclip"], rounds=3)
