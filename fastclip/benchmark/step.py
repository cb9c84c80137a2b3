"""A training step in parts: forward and backward, the clip by torch and by fastclip, the optimizer.

Every round is a whole step, and clips once, by one variant: it finds gradients, caches and objects
as the backward pass leaves them.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastclip
from fastclip.benchmark.errors import BenchmarkError
from fastclip.benchmark.models.workload import Workload
from fastclip.benchmark.timing import Time, clock_ms, keep_freed_memory

MODES = {"not clipping": 2.0, "clipping": 0.5}  # max_norm as a multiple of the norm
TORCH, FASTCLIP, IN_STEP = "torch", "fastclip", "fastclip, in the step"
CLIPS = {TORCH: nn.utils.clip_grad_norm_, FASTCLIP: fastclip.clip_grad_norm_}
WARMUP, LEAST_ROUNDS, MOST_ROUNDS = 2, 3, 100  # rounds of each variant
LR = 1e-9  # parameters stay what they are, and with them the gradients' norm


@dataclass(frozen=True)
class ClipTimes:
    """`alone` is the clip; `with_optimizer` the clip and the optimizer's step together."""

    alone: dict[str, Time]
    with_optimizer: dict[str, Time]


@dataclass(frozen=True)
class Step:
    """Times of the parts of a training step; `errors` are relative, against float64."""

    forward_backward: Time
    optimizer: Time
    modes: dict[str, ClipTimes]
    tensors: int
    elements: int
    gradient_bytes: int
    errors: dict[str, float]


def optimizer_of(name: str, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of torch.optim by its name in any case, fused where it can be."""
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    for other in ("optimizer", "lbfgs", "sparseadam"):  # a base, a closure, sparse gradients
        known.pop(other, None)
    if name.lower() not in known:
        raise BenchmarkError(f"--optimizer {name}: torch.optim has {', '.join(sorted(known))}")
    kind = known[name.lower()]
    accepted = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": LR} if "lr" in accepted else {}
    if "fused" in accepted:
        options["fused"] = True
    if "momentum" in accepted and kind is torch.optim.SGD:
        options["momentum"] = 0.9
    try:
        return kind(parameters, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        options.pop("fused", None)
        try:
            return kind(parameters, **options)
        except (RuntimeError, TypeError, ValueError):
            raise BenchmarkError(f"--optimizer {name}: {error}") from error


def measured(
    workload: Workload, optimizer: torch.optim.Optimizer, device: str, budget_ms: float
) -> Step:
    """Whole training steps for about `budget_ms`, and at least three of each variant."""
    parameters = workload.parameters()
    keep_freed_memory()
    norm = _first_norm(workload, parameters)
    clipped_in_step = _takes_steps_in_one(optimizer)
    pairs = [(mode, name) for mode in MODES for name in CLIPS]
    pairs += [(mode, IN_STEP) for mode in MODES if clipped_in_step]
    samples: dict[tuple[str, ...], list[float]] = {}
    round_ = _Round(workload, optimizer, parameters, norm, device)
    draw, start, done = random.Random(0), 0.0, 0
    for repeat in range(WARMUP + MOST_ROUNDS):
        if repeat == WARMUP:
            start = clock_ms(device)
        draw.shuffle(pairs)
        for pair in pairs:
            for part, ms in round_.run(*pair).items():
                if repeat >= WARMUP:
                    samples.setdefault(part, []).append(ms)
        done = repeat + 1 - WARMUP
        if done >= LEAST_ROUNDS and (clock_ms(device) - start) * (done + 1) / done > budget_ms:
            break
    return _summary(samples, parameters, _errors(parameters))


def _first_norm(workload: Workload, parameters: Sequence[nn.Parameter]) -> float:
    """The norm of the gradients, after checks of the loss, and that it is finite and not 0."""
    try:
        loss = workload.loss()
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"{workload.name}: its forward pass failed on {workload.batch}: {error}"
        ) from error
    if loss.numel() != 1 or not loss.requires_grad:
        raise BenchmarkError(
            f"{workload.name}: the loss has shape {tuple(loss.shape)} and "
            f"{'a' if loss.requires_grad else 'no'} graph; a scalar with a graph is needed"
        )
    loss.backward()
    norm = fastclip.clip_grad_norm_(parameters, float("inf")).item()
    if not 0 < norm < float("inf"):
        raise BenchmarkError(
            f"{workload.name}: the norm of the gradients is {norm}; a clip is measured where it "
            "is finite and not 0 (in float16 a loss scale may be missing: try --dtype autocast)"
        )
    return norm


def _takes_steps_in_one(optimizer: torch.optim.Optimizer) -> bool:
    kinds = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
    return isinstance(optimizer, kinds) and bool(optimizer.defaults.get("fused"))


@dataclass(frozen=True)
class _Round:
    workload: Workload
    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    norm: float
    device: str

    def run(self, mode: str, name: str) -> dict[tuple[str, ...], float]:
        """Milliseconds of each part of one training step."""
        limit = self.norm * MODES[mode]
        self.optimizer.zero_grad()
        start = clock_ms(self.device)
        self.workload.loss().backward()
        backward = clock_ms(self.device)
        if name == IN_STEP:
            fastclip.clip_grads_in_step_(self.optimizer, limit)
            end = clock_ms(self.device)
            return {("backward",): backward - start, ("both", mode, name): end - backward}
        CLIPS[name](self.parameters, limit)
        clipped = clock_ms(self.device)
        self.optimizer.step()
        end = clock_ms(self.device)
        return {
            ("backward",): backward - start,
            ("clip", mode, name): clipped - backward,
            ("optimizer",): end - clipped,
            ("both", mode, name): end - backward,
        }


def _summary(
    samples: dict[tuple[str, ...], list[float]],
    parameters: Sequence[nn.Parameter],
    errors: dict[str, float],
) -> Step:
    times = {part: Time.of(values) for part, values in samples.items()}
    grads = [p.grad for p in parameters if p.grad is not None]

    def of(kind: str, mode: str) -> dict[str, Time]:
        names = (*CLIPS, IN_STEP)
        return {name: times[kind, mode, name] for name in names if (kind, mode, name) in times}

    return Step(
        forward_backward=times[("backward",)],
        optimizer=times[("optimizer",)],
        modes={mode: ClipTimes(of("clip", mode), of("both", mode)) for mode in MODES},
        tensors=len(grads),
        elements=sum(g.numel() for g in grads),
        gradient_bytes=sum(g.numel() * g.element_size() for g in grads),
        errors=errors,
    )


def _errors(parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """The relative error of each variant's norm, against a sum of squares in float64."""
    exact = exact_norm([p.grad for p in parameters if p.grad is not None])
    clips: dict[str, Callable[..., Tensor]] = dict(CLIPS)
    return {
        name: abs(clip_(parameters, float("inf")).double().item() / exact - 1)
        for name, clip_ in clips.items()
    }


def exact_norm(grads: Sequence[Tensor]) -> float:
    """The 2-norm of all tensors together, in float64, a piece at a time."""
    pieces = [piece for g in grads for piece in g.detach().flatten().split(1 << 24)]
    squares = [piece.double().square().sum() for piece in pieces]
    return torch.stack([s.to(squares[0].device) for s in squares]).sum().sqrt().item()
