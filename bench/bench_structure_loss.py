"""The structure loss on the CPU, forward and backward: fastclip against the code people copy.

    pytest bench/bench_structure_loss.py --benchmark-enable

`eager` is the published function, called once per head; `rewrite` is the best that plain torch
does (sums of runs, one weight map for all heads), and `rewrite, compiled` that under torch.compile.
`copy` moves the bytes that the loss must: one read of the logits and the mask, one write of the
gradients. `gb_per_s` counts the same bytes for the loss: over that of `copy` it is the fraction of
the machine's copy bandwidth. `fastclip, scaled` is a float32 step under a loss scale, which costs a
pass over the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cases
import measure
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastclip
from fastclip.ops.structure_loss.dispatch import structure_loss_ref

HEAD_WEIGHTS = (0.5, 0.3, 0.2)
LOSS_SCALE = torch.tensor(65536.0)  # as GradScaler's: float16 gradients would underflow without


def eager(heads: Sequence[Tensor], mask: Tensor) -> Tensor:
    """The published loss: its own weight map for every head."""
    losses = [structure_loss_ref([head], mask, None, 31, 5.0, 1.0, True).mean() for head in heads]
    return sum(w * loss for w, loss in zip(HEAD_WEIGHTS, losses, strict=False))


def box_sum(x: Tensor, dim: int) -> Tensor:
    """Sums of 31 neighbours along one dimension, from sums of 2, 4, 8 and 16."""
    length = x.shape[dim]
    run = F.pad(x, (15, 15) if dim == 3 else (0, 0, 15, 15))
    total, start = run.narrow(dim, 0, length), 1
    for width in (1, 2, 4, 8):
        run = run.narrow(dim, 0, run.shape[dim] - width) + run.narrow(
            dim, width, run.shape[dim] - width
        )
        total = total + run.narrow(dim, start, length)
        start += 2 * width
    return total


def rewrite(heads: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Plain torch at its best: one weight map, by two one-dimensional poolings."""
    w = 1 + 5 * (box_sum(box_sum(mask, 3), 2) / 31**2 - mask).abs()
    w_sum = w.sum((2, 3))
    total = torch.zeros(())
    for factor, head in zip(HEAD_WEIGHTS, heads, strict=False):
        x = head.float()
        s = x.sigmoid()
        bce = (w * (F.softplus(x) - x * mask)).sum((2, 3)) / w_sum
        ws = w * s
        inter = (ws * mask).sum((2, 3))
        union = (ws + w * mask).sum((2, 3))
        total = total + factor * (bce + 1 - (inter + 1) / (union - inter + 1)).mean()
    return total


def step(
    loss: Callable, heads: list[Tensor], mask: Tensor, scale: Tensor | None = None
) -> Callable[[], Tensor]:
    """A step that drops its gradients in its own time: the next variant's would pay for it."""

    def run() -> Tensor:
        value = loss(heads, mask)
        value.backward(scale)
        for head in heads:
            head.grad = None
        return value

    return run


def scene(shape: tuple[int, ...], heads: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    field = F.interpolate(torch.randn(*shape[:2], 6, 8), shape[2:], mode="bilinear")
    logits = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(heads)]
    return logits, (field > 0).float()


def gradients(
    loss: Callable, heads: list[Tensor], mask: Tensor, scale: Tensor | None
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(heads, mask), heads, scale)


def largest_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    errors = [(f.double() - e).norm() / e.norm() for f, e in zip(found, exact, strict=True)]
    return max(error.item() for error in errors)


@pytest.mark.parametrize(
    ("case", "dtype"), [(c.name, d) for c in cases.LOSSES.values() for d in c.on_cpu], ids=str
)
def bench_structure_loss(case, dtype, benchmark):
    count, shape = cases.LOSSES[case].heads, cases.LOSSES[case].shape
    heads, mask = scene(shape, count, dtype)

    def fused(x: list[Tensor], m: Tensor) -> Tensor:
        return fastclip.structure_loss(x, m, head_weights=HEAD_WEIGHTS[:count])

    losses = {"eager": eager, "rewrite": rewrite, "fastclip": fused}
    torch._dynamo.reset()
    losses["rewrite, compiled"] = torch.compile(rewrite)
    scale = LOSS_SCALE if dtype == torch.float16 else None
    variants = {name: step(loss, heads, mask, scale) for name, loss in losses.items()}
    doubles = [head.detach().double().requires_grad_() for head in heads]
    exact = gradients(eager, doubles, mask.double(), scale)
    errors = {
        name: largest_error(gradients(loss, heads, mask, scale), exact)
        for name, loss in losses.items()
    }
    assert errors["fastclip"] < {torch.float32: 1e-6, torch.bfloat16: 3e-3}.get(dtype, 1e-3)
    moved = cases.LOSSES[case].bytes_moved(dtype)
    buffer, other = torch.empty(moved // 8), torch.empty(moved // 8)
    variants["copy"] = lambda: buffer.copy_(other)
    medians = measure.interleaved_ms(variants, repeats=3, warmup=0)  # `errors` warmed all up
    del variants["eager"]  # it takes seconds: the others' medians are of many turns without it
    medians |= measure.interleaved_ms(variants, repeats=25)
    if dtype == torch.float32:  # in the place of `fastclip`, which it would warm up
        others = variants | {"fastclip": step(fused, heads, mask, LOSS_SCALE)}
        medians["fastclip, scaled"] = measure.interleaved_ms(others, repeats=15)["fastclip"]
    rows = measure.rows(
        "structure_loss",
        case,
        str(dtype).removeprefix("torch."),
        medians,
        baseline="eager",
        moved_bytes=dict.fromkeys(("fastclip", "copy"), moved),
        errors=errors,
    )
    measure.save("structure_loss_cpu", rows)
    benchmark(variants["fastclip"])


@pytest.mark.parametrize("case", [c.name for c in cases.LOSSES.values() if c.heads == 3])
def bench_in_a_loop(case, benchmark):
    """Steps in a row, as a benchmark of one function has them: all of it is warm."""
    heads, mask = scene(cases.LOSSES[case].shape, 3, torch.float32)
    torch._dynamo.reset()
    losses = {"rewrite, compiled": torch.compile(rewrite)}
    losses["fastclip"] = lambda x, m: fastclip.structure_loss(x, m, head_weights=HEAD_WEIGHTS)
    variants = {name: step(loss, heads, mask) for name, loss in losses.items()}
    medians = measure.interleaved_ms(variants, repeats=15, in_a_loop=8)
    rows = measure.rows(
        "structure_loss", f"{case}, in a loop", "float32", medians, baseline="rewrite, compiled"
    )
    measure.save("structure_loss_cpu", rows)
    benchmark(variants["fastclip"])


@pytest.mark.parametrize("window", [3, 31, 101])
def bench_window(window, benchmark):
    heads, mask = scene((16, 1, 192, 256), 3, torch.float32)
    run = step(lambda x, m: fastclip.structure_loss(x, m, window=window), heads, mask)
    narrow = step(lambda x, m: fastclip.structure_loss(x, m, window=1), heads, mask)
    variants = {"fastclip, window 1": narrow, f"fastclip, window {window}": run}
    medians = measure.interleaved_ms(variants, 40)
    rows = measure.rows(
        "structure_loss", "3 heads, 16x1x192x256", "float32", medians, baseline="fastclip, window 1"
    )
    measure.save("structure_loss_cpu", rows)
    benchmark(run)


def bench_threads(benchmark):
    """One thread against all that torch was given."""
    heads, mask = scene((16, 1, 192, 256), 3, torch.float32)
    run = step(lambda x, m: fastclip.structure_loss(x, m), heads, mask)
    most = torch.get_num_threads()

    def on(threads: int) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(threads)
            run()

        return call

    variants = {f"fastclip, {n} threads": on(n) for n in sorted({1, most})}
    medians = measure.interleaved_ms(variants, 40)
    torch.set_num_threads(most)
    rows = measure.rows(
        "structure_loss",
        "3 heads, 16x1x192x256",
        "float32",
        medians,
        baseline="fastclip, 1 threads",
    )
    measure.save("structure_loss_cpu", rows)
    benchmark(run)
