"""clip_grad_norm_ of DTensors over two gloo ranks, one thread each: torch against fastclip.

    pytest bench/bench_sharded.py --benchmark-enable     # measures, writes rows
    python bench/bench_sharded.py --draw                 # the picture of docs/distributed.md

DTensors of 64x32 float32, half of each on either rank. `plain` is fastclip on the same shards as
plain tensors, which asks no other rank, and `all_reduce` is one of two numbers: together the floor.
Rank 0's medians; both ranks call the variants in the same order. `error` is the norm's, relative,
against float64. 20,000 are not clipped by torch: the first time it stacks as many norms it works
out for minutes how the result is to lie on ranks, in time that grows with their square.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastclip

pytestmark = pytest.mark.slow
COUNTS = (100, 400, 1600, 20_000)
TORCH_UP_TO = 1600
MODES = ("not clipping", "clipping")
NAME, BENCH = "sharded_cpu", "clip, sharded"
COLOURS = {"torch": "#c44e52", "fastclip": "#2b6cb0", "plain": "#8a8a8a", "all_reduce": "#bbbbbb"}


def case_of(count: int, mode: str) -> str:
    return f"{count} DTensors of 64x32, 2 gloo ranks, {mode}"


def parameters_of(count: int) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """DTensors with gradients, and plain parameters with copies of their shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (2,))
    spread, plain = [], []
    for _ in range(count):
        local = torch.randn(32, 32)
        spread.append(nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)], run_check=False)))
        spread[-1].grad = DTensor.from_local(local.clone(), mesh, [Shard(0)], run_check=False)
        plain.append(nn.Parameter(local))
        plain[-1].grad = local.clone()
    return spread, plain


def variants_of(count: int, clips: bool) -> tuple[dict[str, Callable[[], object]], dict]:
    """The calls, and the relative errors of their norms."""
    spread, plain = parameters_of(count)
    limit, two = [1.0 if clips else 1e9], torch.zeros(2, dtype=torch.float64)

    def call(clip_: Callable, parameters: list[nn.Parameter]) -> Callable[[], object]:
        def run() -> None:
            limit[0] *= 0.99 if clips else 1  # every step clips anew, a little
            clip_(parameters, limit[0])

        return run

    exact = sum(p.grad.to_local().double().square().sum() for p in spread)
    dist.all_reduce(exact)
    errors = {}
    norms = {"fastclip": fastclip.get_total_norm}
    variants: dict[str, Callable[[], object]] = {
        "fastclip": call(fastclip.clip_grad_norm_, spread),
        "plain": call(fastclip.clip_grad_norm_, plain),
        "all_reduce": lambda: dist.all_reduce(two),
    }
    if count <= TORCH_UP_TO:
        norms["torch"] = nn.utils.get_total_norm
        variants["torch"] = call(nn.utils.clip_grad_norm_, spread)
    for name, norm_of in norms.items():
        norm = norm_of([p.grad for p in spread]).full_tensor().double()
        errors[name] = (norm / exact.sqrt() - 1).abs().item()
    return variants, errors


def aligned_ms(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Medians, interleaved; ranks begin each call together, so that none pays for the other's."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffler = list(variants), random.Random(0)  # the same on both ranks
    for repeat in range(repeats + 2):
        shuffler.shuffle(order)
        for name in order:
            dist.barrier()
            start = time.perf_counter()
            variants[name]()
            if repeat >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for count in COUNTS:
        for mode in MODES:
            variants, errors = variants_of(count, mode == "clipping")
            medians = aligned_ms(variants, repeats=7 if count > TORCH_UP_TO else 31)
            found.append([count, mode, medians, errors])
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measured() -> list[dict[str, object]]:
    """The rows of all cases, from two processes of their own."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=rank_main, args=(rank, Path(folder))) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        cases = json.loads((Path(folder) / "found.json").read_text())
    found = []
    for count, mode, medians, errors in cases:
        case, baseline = case_of(count, mode), "torch" if "torch" in medians else "fastclip"
        new = measure.rows(BENCH, case, "float32", medians, baseline=baseline, errors=errors)
        for row in new if baseline != "torch" else ():
            row["speedup"] = ""  # over torch's, which is not measured
        found += new
    for row in found:
        row["threads"] = 1  # a rank
    return found


def bench_sharded_clip(benchmark):
    measure.save(NAME, measured())
    benchmark.pedantic(lambda: None, rounds=1)


def draw() -> None:
    """The picture, from the rows that are there."""
    import csv

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    with (measure.RESULTS / f"{NAME}.csv").open(newline="") as file:
        rows = {(row["case"], row["variant"]): row for row in csv.DictReader(file)}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for one, mode in zip(axes, MODES, strict=True):
        for name, colour in COLOURS.items():
            counts = [n for n in COUNTS if (case_of(n, mode), name) in rows]
            times = [float(rows[case_of(n, mode), name]["median_ms"]) for n in counts]
            one.plot(counts, times, "o-", color=colour, label=name)
        one.set(xscale="log", yscale="log", xlabel="DTensors of 64x32 float32", title=mode)
        one.set_xticks(COUNTS, [f"{n:,}" for n in COUNTS])
        one.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        one.grid(alpha=0.3)
        one.legend(frameon=False)
    axes[0].set_ylabel("clip_grad_norm_, ms per call")
    last = next(iter(rows.values()))
    where = f"{last['device']}, one thread a rank, torch {last['torch']}, {last['date']}"
    figure.suptitle(f"two gloo ranks; medians on {where}", fontsize=9)
    figure.tight_layout()
    figure.savefig(measure.RESULTS / f"{NAME}.png", dpi=100)


if __name__ == "__main__" and "--draw" in sys.argv:
    draw()
