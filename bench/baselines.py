"""What fastclip is measured against: the best rewrites in plain torch, torch.compile, and peers."""

from __future__ import annotations

import functools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cases
import torch
from torch import Tensor, nn

import fastclip
from fastclip.ops.unit_clip import reference as unit_clip

Clip = Callable[[Sequence[nn.Parameter], float], object]
EPS = 1e-3  # AGC's least weight norm


def rewrite_(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """The best of plain torch: foreach, and no write where nothing is clipped."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2.0)))
    factor = max_norm / (norm.item() + 1e-6)
    if factor < 1:
        torch._foreach_mul_(grads, factor)
    return norm


@functools.cache
def compiled(case: str) -> Clip:
    """torch's own clip of a case under torch.compile; a tensor is its limit: one graph for all."""
    torch._dynamo.reset()
    clip_ = torch.compile(nn.utils.clip_grad_norm_)
    limit = torch.empty(())

    def run(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        limit.fill_(max_norm)
        return clip_(parameters, limit)

    return run


def optax_ms(case: str, clipping: bool, repeats: int) -> float:
    """The median of optax's clip_by_global_norm under jit, from a process of its own.

    XLA's threads and torch's, which both wait busily, slow each other down in one process.
    """
    command = [sys.executable, __file__, case, str(int(clipping)), str(repeats)]
    path = os.pathsep.join((str(Path(fastclip.__file__).parents[1]), *sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return float(subprocess.check_output(command, env=environment, text=True).split()[-1])


def measure_optax(case: str, clipping: bool, repeats: int) -> float:
    """Milliseconds, with the result waited for; torch is idle.

    jax changes nothing in place; the gradients are donated, so that XLA writes where it read.
    """
    import jax
    import optax

    @functools.partial(jax.jit, donate_argnums=0)
    def clip(grads: list, max_norm: float) -> list:
        transform = optax.clip_by_global_norm(max_norm)
        return transform.update(grads, transform.init(grads))[0]

    parameters = cases.BY_NAME[case].parameters((torch.float32,))
    grads = [jax.numpy.asarray(p.grad.numpy().copy()) for p in parameters]  # type: ignore[union-attr]
    limit = math.sqrt(sum(p.numel() for p in parameters)) * (1 if clipping else 1.5)
    times_ms = []
    for _ in range(repeats + 3):
        limit *= 0.99 if clipping else 1
        start = time.perf_counter()
        grads = jax.block_until_ready(clip(grads, limit))
        times_ms.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times_ms[3:])


def agc_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    """Adaptive gradient clipping in plain torch: a few calls for each parameter."""
    for p in parameters:
        unit_clip.clip_units_ref_(p, p.grad, clipping, EPS)


@torch.no_grad()
def agc_rewrite_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    """The best of plain torch: foreach calls for what does not need a parameter's own shape."""
    grads = [p.grad for p in parameters]
    limits = [unit_clip.unit_norms(p) for p in parameters]
    norms = [unit_clip.unit_norms(g) for g in grads]
    torch._foreach_clamp_min_(limits, EPS)
    torch._foreach_mul_(limits, clipping)
    torch._foreach_clamp_min_(norms, 1e-6)
    torch._foreach_div_(limits, norms)
    for grad, factor in zip(grads, limits, strict=True):
        if (factor < 1).any():
            grad.mul_(factor.clamp_(max=1.0))


def timm_agc_(parameters: Sequence[nn.Parameter], clipping: float) -> None:
    """timm's, which its trainers call with --clip-mode agc."""
    from timm.utils.agc import adaptive_clip_grad

    adaptive_clip_grad(parameters, clipping, EPS)


class PlainAutoClip:
    """The published AutoClip: every norm is kept, and sorted at every step."""

    def __init__(self, percentile: float = 10) -> None:
        self.percentile, self.norms = percentile, list[float]()

    def clip_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Clips to the percentile of all norms so far, as `autoclip.py` of its authors does."""
        import numpy as np

        total = 0.0
        for p in parameters:
            total += p.grad.norm(2).item() ** 2  # type: ignore[union-attr]
        self.norms.append(total**0.5)
        limit = float(np.percentile(self.norms, self.percentile))
        nn.utils.clip_grad_norm_(parameters, limit)


class PlainZClip:
    """The published ZClip, of its options' defaults: a spike is scaled, reciprocally, to z*'s."""

    def __init__(self, alpha: float = 0.97, threshold: float = 2.5, warmup: int = 25) -> None:
        self.alpha, self.threshold, self.warmup = alpha, threshold, warmup
        self.first, self.mean, self.variance = list[float](), 0.0, 0.0

    def clip_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Scales the gradients where their norm is an outlier among the norms so far."""
        norms = [p.grad.norm(2) for p in parameters]  # type: ignore[union-attr]
        norm = torch.norm(torch.stack(norms), 2).item()
        if len(self.first) < self.warmup:
            self.first.append(norm)
            if len(self.first) == self.warmup:
                self.mean = statistics.fmean(self.first)
                self.variance = statistics.pvariance(self.first)
            return
        deviation = math.sqrt(self.variance)
        z = (norm - self.mean) / (deviation + 1e-6)
        if z > self.threshold:
            limit = self.mean + self.threshold * deviation / (z / self.threshold)
            for p in parameters:
                p.grad.mul_(limit / (norm + 1e-6))  # type: ignore[union-attr]
            norm = limit
        self.mean = self.alpha * self.mean + (1 - self.alpha) * norm
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (norm - self.mean) ** 2


if __name__ == "__main__":
    print(measure_optax(sys.argv[1], bool(int(sys.argv[2])), int(sys.argv[3])))
