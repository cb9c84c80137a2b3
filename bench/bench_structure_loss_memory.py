"""Memory of the structure loss on the CPU: what lies between forward and backward, and the peak.

    pytest bench/bench_structure_loss_memory.py --benchmark-enable
    python bench/bench_structure_loss_memory.py eager   # the peak of the process

Columns, in bytes: `gradient` (of all heads: every variant must allocate it), `after_forward` (what
the forward pass allocated and keeps for the backward pass), `peak` (of CPU tensors, the gradient
included), `beyond_gradient` (the difference), `process_peak` (resident memory, native buffers
included; to about 0.3 MB).
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import measure
import memory
import torch
from bench_structure_loss import HEAD_WEIGHTS, eager, rewrite, scene
from torch import Tensor

import fastclip

SHAPE = (16, 1, 192, 256)
COLUMNS = (
    *("case", "dtype", "variant", "gradient", "after_forward", "peak", "beyond_gradient"),
    *("process_peak", "torch", "threads"),
)


def fused(heads: Sequence[Tensor], mask: Tensor) -> Tensor:
    return fastclip.structure_loss(heads, mask, head_weights=HEAD_WEIGHTS[: len(heads)])


VARIANTS: dict[str, Callable] = {"eager": eager, "rewrite": rewrite, "fastclip": fused}


def process_peak_bytes(variant: str, *, environment: dict[str, str] | None = None) -> int:
    """Of forward and backward, above the inputs, in a fresh process."""
    command = [sys.executable, __file__, variant]
    here = str(Path(fastclip.__file__).parents[1])  # the package under test, installed or not
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    own = {**memory.RETURN_MEMORY, "PYTHONPATH": path, **(environment or {})}
    environment = {**os.environ, **own}
    return int(subprocess.check_output(command, env=environment, text=True).split()[-1])


def main(variant: str) -> None:
    heads, mask = scene(SHAPE, 3, torch.float32)

    def step() -> None:
        VARIANTS[variant](heads, mask).backward()

    step()  # threads started, code loaded
    for head in heads:
        head.grad = None
    print(memory.process_peak_bytes(step))


def bench_memory(benchmark):
    heads, mask = scene(SHAPE, 3, torch.float32)
    gradient = sum(head.numel() * head.element_size() for head in heads)
    rows = []
    for name, loss in VARIANTS.items():
        forward, whole = memory.traced_step(
            lambda loss=loss: loss(heads, mask), lambda value: torch.autograd.grad(value, heads)
        )
        peak = process_peak_bytes(name) if memory.PEAK_RESET.exists() else ""
        sizes = (gradient, forward.end, whole.peak, whole.peak - gradient, peak)
        case = ("3 heads, " + "x".join(map(str, SHAPE)), "float32", name)
        rows.append((*case, *sizes, torch.__version__, torch.get_num_threads()))
        print(*rows[-1], sep="  ")
    assert rows[-1][6] < 64 * 1024
    measure.RESULTS.mkdir(exist_ok=True)
    with (measure.RESULTS / "structure_loss_memory.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    benchmark.pedantic(fused, (heads, mask), rounds=1)


if __name__ == "__main__":
    main(sys.argv[1])
