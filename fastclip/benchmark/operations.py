"""What is measured where no model is named: clips of typical lists, and the structure loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastclip
from fastclip.benchmark.models.builtin import published_structure_loss
from fastclip.benchmark.models.workload import DTYPES
from fastclip.benchmark.step import CLIPS, FASTCLIP, TORCH, exact_norm
from fastclip.benchmark.timing import Time, interleaved

LISTS = {"1000 tensors of 1000": [1000] * 1000, "one tensor of 25 million": [25_000_000]}
LOSS_SHAPE = (4, 1, 192, 256)
HEADS = 3


@dataclass(frozen=True)
class Operation:
    """One call, torch against fastclip; `errors` are relative, against float64."""

    name: str
    times: dict[str, Time]
    errors: dict[str, float]
    moved_bytes: int


def measured(device: str, dtype: str) -> list[Operation]:
    """A clip of each list, with nothing to clip, and forward and backward of the loss."""
    return [*(clip(name, device, dtype) for name in LISTS), loss(device, dtype)]


def clip(name: str, device: str, dtype: str) -> Operation:
    """`clip_grad_norm_` over one of LISTS, with nothing to clip."""
    torch.manual_seed(0)
    parameters = []
    for elements in LISTS[name]:
        p = nn.Parameter(torch.empty(elements, device=device, dtype=DTYPES[dtype]))
        p.grad = torch.randn(elements, device=device).to(p.dtype)
        parameters.append(p)
    grads = [p.grad for p in parameters if p.grad is not None]
    exact = exact_norm(grads)
    errors = {n: abs(c(parameters, float("inf")).item() / exact - 1) for n, c in CLIPS.items()}
    calls: dict[str, Callable[[], object]] = {
        TORCH: lambda: CLIPS[TORCH](parameters, 2 * exact),
        FASTCLIP: lambda: CLIPS[FASTCLIP](parameters, 2 * exact),
    }
    times = interleaved(calls, 41, device=device)
    moved = sum(g.numel() * g.element_size() for g in grads)
    summary = {n: Time.of(samples) for n, samples in times.items()}
    return Operation(f"clip {name}, nothing to clip", summary, errors, moved)


def loss(device: str, dtype: str) -> Operation:
    """The structure loss of three heads: fastclip against the published code."""
    torch.manual_seed(0)
    coarse = torch.randn(*LOSS_SHAPE[:2], 6, 8)
    mask = (F.interpolate(coarse, LOSS_SHAPE[2:], mode="bilinear") > 0).float().to(device)
    logits = [torch.randn(LOSS_SHAPE).to(device, DTYPES[dtype]) for _ in range(HEADS)]
    heads = [head.requires_grad_() for head in logits]

    def ours(maps: Sequence[Tensor], target: Tensor) -> Tensor:
        return fastclip.structure_loss(maps, target)

    losses = {TORCH: published_structure_loss, FASTCLIP: ours}
    doubles = [head.detach().double().requires_grad_() for head in heads]
    exact = torch.autograd.grad(published_structure_loss(doubles, mask.double()), doubles)
    errors = {}
    for name, function in losses.items():
        found = torch.autograd.grad(function(heads, mask.to(heads[0].dtype)), heads)
        errors[name] = max(_relative(f, e) for f, e in zip(found, exact, strict=True))

    def step(function: Callable[[Sequence[Tensor], Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            torch.autograd.grad(function(heads, mask), heads)

        return run

    times = interleaved({n: step(f) for n, f in losses.items()}, 9, warmup=2, device=device)
    size = sum(head.numel() * head.element_size() for head in heads)
    summary = {n: Time.of(samples) for n, samples in times.items()}
    shape = "x".join(map(str, LOSS_SHAPE))
    name = f"structure loss, {HEADS} heads, {shape}, forward + backward"
    return Operation(name, summary, errors, 2 * size + mask.numel() * mask.element_size())


def _relative(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()
