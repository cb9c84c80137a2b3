"""Gradient clipping on the CPU: fastclip against torch eager, compiled, and the best rewrite.

    pytest bench/bench_grad_norm.py --benchmark-enable

`read` is what a threaded read of the same bytes takes (torch's sum of one flat tensor), the floor
of a step that clips nothing; `read + scale` adds torch's in-place multiplication of it, the floor
of one that clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import baselines
import cases
import measure
import pytest
import torch
from torch import Tensor, nn

import fastclip


def exact_norm(grads: list[Tensor]) -> float:
    return math.sqrt(math.fsum(g.double().square().sum().item() for g in grads))


def clips(case: cases.Case, dtype: str) -> dict[str, baselines.Clip]:
    """The functions of (parameters, max_norm) that a case is clipped by."""
    found: dict[str, baselines.Clip] = {
        "torch": nn.utils.clip_grad_norm_,
        "rewrite": baselines.rewrite_,
        "fastclip": fastclip.clip_grad_norm_,
    }
    if case.compiled and dtype == "float32":
        found["torch, compiled"] = baselines.compiled(case.name)
    return found


@pytest.mark.parametrize("clipping", [False, True], ids=["unclipped", "clipping"])
@pytest.mark.parametrize(("name", "dtype"), cases.on_cpu("clip"))
def bench_clip(name, dtype, clipping, benchmark):
    case = cases.BY_NAME[name]
    parameters = case.parameters(case.on_cpu[dtype])
    grads = [p.grad for p in parameters]
    exact = exact_norm(grads)
    limit = [exact if clipping else 1.5 * exact]
    flat = torch.randn(cases.bytes_moved("clip", grads, False) // 4)

    def step(clip_: Callable) -> Callable[[], object]:
        def run() -> object:
            limit[0] *= 0.99 if clipping else 1  # every step clips anew, a little
            return clip_(parameters, limit[0])

        return run

    functions = clips(case, dtype)
    errors = {n: abs(f(parameters, math.inf).item() / exact - 1) for n, f in functions.items()}
    assert errors["fastclip"] < (1e-6 if dtype == "float32" else 5e-3)
    variants = {variant: step(function) for variant, function in functions.items()}
    variants["read + scale" if clipping else "read"] = (
        (lambda: (flat.sum(), flat.mul_(0.999))) if clipping else flat.sum
    )
    medians = measure.interleaved_ms(variants, repeats=40)
    moved = dict.fromkeys(variants, cases.bytes_moved("clip", grads, clipping))
    mode = "clipping" if clipping else "not clipping"
    rows = measure.rows(
        "clip",
        f"{name}, {mode}",
        dtype,
        medians,
        baseline="torch",
        moved_bytes=moved,
        errors=errors,
    )
    measure.save("clip_cpu", rows)
    benchmark(variants["fastclip"])


@pytest.mark.parametrize("clipping", [False, True], ids=["unclipped", "clipping"])
@pytest.mark.parametrize("name", [cases.TRANSFUSE_S, "1000 x 1000"])
def bench_optax(name, clipping, benchmark):
    """torch and fastclip in turns, and then optax alone: `baselines.optax_ms` says why."""
    pytest.importorskip("optax")
    parameters = cases.BY_NAME[name].parameters((torch.float32,))
    grads = [p.grad for p in parameters]
    limit = [exact_norm(grads) * (1 if clipping else 1.5)]

    def step(clip_: Callable) -> Callable[[], object]:
        def run() -> object:
            limit[0] *= 0.99 if clipping else 1
            return clip_(parameters, limit[0])

        return run

    functions = {"torch": nn.utils.clip_grad_norm_, "fastclip": fastclip.clip_grad_norm_}
    variants = {variant: step(function) for variant, function in functions.items()}
    medians = measure.interleaved_ms(variants, repeats=25)
    medians["optax"] = baselines.optax_ms(name, clipping, 25)
    moved = dict.fromkeys(medians, cases.bytes_moved("clip", grads, clipping))
    mode = "clipping" if clipping else "not clipping"
    rows = measure.rows(
        "clip, optax", f"{name}, {mode}", "float32", medians, baseline="torch", moved_bytes=moved
    )
    measure.save("clip_cpu", rows)
    benchmark.pedantic(variants["fastclip"], rounds=3)


@pytest.mark.parametrize("case", ["1000 x 1000", "10000 x 100"])
def bench_clip_in_a_loop(case, benchmark):
    """Calls in a row, as a benchmark of one function has them: all of it is warm."""
    parameters = cases.BY_NAME[case].parameters((torch.float32,))
    limit = exact_norm([p.grad for p in parameters]) * 1.5
    functions = {"torch": nn.utils.clip_grad_norm_, "rewrite": baselines.rewrite_}
    functions["fastclip"] = fastclip.clip_grad_norm_
    variants = {name: (lambda f=f: f(parameters, limit)) for name, f in functions.items()}
    medians = measure.interleaved_ms(variants, repeats=20, in_a_loop=10)
    case = f"{case}, not clipping, in a loop"
    measure.save("clip_cpu", measure.rows("clip", case, "float32", medians, baseline="torch"))
    benchmark(variants["fastclip"])


@pytest.mark.parametrize("clipping", [False, True], ids=["unclipped", "clipping"])
@pytest.mark.parametrize("case", [name for name, _ in cases.on_cpu("clip value")])
def bench_clip_value(case, clipping, benchmark):
    """clip_grad_value_; where it clips, a few elements of every tensor are past the limit."""
    parameters = cases.BY_NAME[case].parameters((torch.float32,))
    grads = [p.grad for p in parameters]
    limit = [max(g.abs().max().item() for g in grads)]
    if clipping:
        limit[0] = 3.0
    flat = torch.randn(sum(g.numel() for g in grads))

    def step(clip_: Callable) -> Callable[[], object]:
        def run() -> object:
            limit[0] *= 0.999 if clipping else 1
            return clip_(parameters, limit[0])

        return run

    functions = {"torch": nn.utils.clip_grad_value_, "fastclip": fastclip.clip_grad_value_}
    variants = {name: step(function) for name, function in functions.items()}
    variants["read"] = flat.sum
    medians = measure.interleaved_ms(variants, repeats=40)
    moved = dict.fromkeys(variants, cases.bytes_moved("clip value", grads, clipping))
    case = f"{case}, {'clipping' if clipping else 'not clipping'}"
    rows = measure.rows("clip value", case, "float32", medians, baseline="torch", moved_bytes=moved)
    measure.save("clip_cpu", rows)
    benchmark(variants["fastclip"])


@pytest.mark.parametrize("elements", [10**6, 10**7, 10**8])
def bench_accuracy(elements, benchmark):
    """The norm of one float32 tensor: relative error against float64, and time."""
    x = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    exact = exact_norm(list(x.split(10**7)))
    functions = {"torch": nn.utils.get_total_norm, "fastclip": fastclip.get_total_norm}
    errors = {name: abs(f([x]).item() / exact - 1) for name, f in functions.items()}
    assert errors["fastclip"] < 1e-6
    calls = {name: (lambda f=f: f([x])) for name, f in functions.items()}
    medians = measure.interleaved_ms(calls, repeats=7, warmup=1)
    rows = measure.rows(
        "norm",
        f"1 x {elements:.0e}",
        "float32",
        medians,
        baseline="torch",
        moved_bytes=dict.fromkeys(calls, 4 * elements),
        errors=errors,
    )
    measure.save("clip_cpu", rows)
    benchmark.pedantic(calls["fastclip"], rounds=3)


@pytest.mark.parametrize("clipping", [False, True], ids=["unclipped", "clipping"])
def bench_clip_and_step(clipping, benchmark):
    """Clip, then AdamW(fused), on TransFuse_S."""
    parameters = cases.BY_NAME[cases.TRANSFUSE_S].parameters((torch.float32,))
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    limit = [exact_norm([p.grad for p in parameters]) * (1 if clipping else 1.5)]
    shrink = 0.99 if clipping else 1.0

    def step(clip_: Callable) -> Callable[[], None]:
        def run() -> None:
            limit[0] *= shrink
            clip_(parameters, limit[0])
            optimizer.step()

        return run

    def in_step() -> None:
        limit[0] *= shrink
        fastclip.clip_grads_in_step_(optimizer, limit[0])

    variants = {"torch": step(nn.utils.clip_grad_norm_), "fastclip": step(fastclip.clip_grad_norm_)}
    variants["fastclip, in step"] = in_step
    medians = measure.interleaved_ms(variants, repeats=25)
    case = f"transfuse_s, {'clipping' if clipping else 'not clipping'}"
    rows = measure.rows("clip + adamw", case, "float32", medians, baseline="torch")
    measure.save("clip_cpu", rows)
    benchmark.pedantic(variants["fastclip"], rounds=3)
