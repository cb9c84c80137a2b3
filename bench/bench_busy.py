"""Each CPU op beside 0, 1, 2 and 4 busy processes, on all threads, on one, and torch's own.

    pytest bench/bench_busy.py --benchmark-enable

A phase is a run of calls of one variant; phases are interleaved, three of each, and the phase with
the worst median counts. Beside it stands the 90th percentile of the worst phase.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import measure
import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.slow
BUSY = (0, 1, 2, 4)
PHASES = 3
PHASE_S, CALLS = 0.5, 12  # seconds and calls at least
SHAPE = (16, 1, 192, 256)


class Variant(NamedTuple):
    threads: int
    call: Callable[[], object]  # may return the milliseconds that count


class Phase(NamedTuple):
    median_ms: float
    p90_ms: float


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def phase_of(variant: Variant) -> Phase:
    torch.set_num_threads(variant.threads)
    variant.call()
    times: list[float] = []
    end = time.perf_counter() + PHASE_S
    while (start := time.perf_counter()) < end or len(times) < CALLS:
        inside_ms = variant.call()
        whole_ms = (time.perf_counter() - start) * 1e3
        times.append(inside_ms if isinstance(inside_ms, float) else whole_ms)
    times.sort()
    return Phase(statistics.median(times), times[int(0.9 * len(times))])


def worst_phases(variants: Mapping[str, Variant]) -> dict[str, Phase]:
    threads = torch.get_num_threads()
    phases: dict[str, list[Phase]] = {name: [] for name in variants}
    try:
        for _ in range(PHASES):
            for name, variant in variants.items():
                phases[name].append(phase_of(variant))
    finally:
        torch.set_num_threads(threads)
    return {name: max(found) for name, found in phases.items()}


def parameters_of(count: int, numel: int) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.empty(numel)) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.randn(numel)
    return parameters


def clip(count: int, numel: int) -> dict[str, Callable[[], object]]:
    parameters = parameters_of(count, numel)
    return {
        "torch": lambda: nn.utils.clip_grad_norm_(parameters, 1e9),
        "fastclip": lambda: fastclip.clip_grad_norm_(parameters, 1e9),
    }


def norms() -> dict[str, Callable[[], object]]:
    named = [(f"p{i}", p) for i, p in enumerate(parameters_of(100, 262_144))]
    grads = [p.grad for _, p in named]
    return {
        "torch": lambda: torch._foreach_norm(grads),
        "fastclip": lambda: fastclip.grad_norms(named),
    }


def clip_value() -> dict[str, Callable[[], object]]:
    parameters = parameters_of(100, 262_144)
    return {
        "torch": lambda: nn.utils.clip_grad_value_(parameters, 1e9),
        "fastclip": lambda: fastclip.clip_grad_value_(parameters, 1e9),
    }


def agc() -> dict[str, Callable[[], object]]:
    parameters = [nn.Parameter(torch.randn(256, 1024)) for _ in range(100)]
    for p in parameters:
        p.grad = torch.randn_like(p) * 1e-6
    clipper = fastclip.AGC()

    def plain() -> None:
        for p in parameters:
            assert p.grad is not None
            limit = 0.01 * p.detach().norm(dim=1, keepdim=True).clamp(min=1e-3)
            norm = p.grad.norm(dim=1, keepdim=True)
            p.grad.copy_(torch.where(norm < limit, p.grad, p.grad * limit / norm.clamp(min=1e-6)))

    return {"torch": plain, "fastclip": lambda: clipper.clip_(parameters)}


def loss() -> dict[str, Callable[[], object]]:
    heads = [torch.randn(SHAPE, requires_grad=True) for _ in range(3)]
    mask = (torch.rand(SHAPE) > 0.5).float()

    def ours() -> None:
        for head in heads:
            head.grad = None
        fastclip.structure_loss(heads, mask, head_weights=(0.5, 0.3, 0.2)).backward()

    return {"fastclip": ours}


def step() -> dict[str, Callable[[], object]]:
    """The clip in a training step: torch's threads spin after its backward pass."""
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batch = torch.randn(64, 512)

    def steps(clip: Callable[..., object]) -> Callable[[], float]:
        def call() -> float:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            start = time.perf_counter()
            clip(model.parameters(), 1e9)
            ms = (time.perf_counter() - start) * 1e3
            optimizer.step()
            return ms

        return call

    return {
        "torch": steps(nn.utils.clip_grad_norm_),
        "fastclip": steps(fastclip.clip_grad_norm_),
    }


CASES = {
    "clip 1000 x 1000": lambda: clip(1000, 1000),
    "clip 100 x 1 MB": lambda: clip(100, 262_144),
    "norms 100 x 1 MB": norms,
    "clip value 100 x 1 MB": clip_value,
    "agc 100 x 1 MB": agc,
    "loss 3 heads 16x1x192x256": loss,
    "the clip in a step of 8 x 512x512": step,
}


def variants_of(case: str) -> dict[str, Variant]:
    """On as many threads as torch has now; torch's own too, fastclip's also on one."""
    threads = torch.get_num_threads()
    calls = CASES[case]()
    variants = {name: Variant(threads, call) for name, call in calls.items()}
    return {**variants, "fastclip, 1 thread": Variant(1, calls["fastclip"])}


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.parametrize("case", CASES)
def bench_busy(case: str, busy: int, benchmark) -> None:
    variants = variants_of(case)
    with busy_processes(busy):
        phases = worst_phases(variants)
        benchmark.pedantic(variants["fastclip"].call, rounds=1)
    label = f"{case}, {busy} busy processes"
    for name, choose in (("median", 0), ("90th percentile", 1)):
        found = {variant: phase[choose] for variant, phase in phases.items()}
        rows = measure.rows(
            "busy", f"{label}, {name}", "float32", found, baseline="fastclip, 1 thread"
        )
        measure.save("busy_cpu", rows)
