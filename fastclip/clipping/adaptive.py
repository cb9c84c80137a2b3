"""Clippers whose limit follows training: AutoClip, ZClip, and AGC."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastclip.clipping.clip import _number, clip_grads_with_norm_, get_total_norm
from fastclip.ops.unit_clip.dispatch import clip_units_


class _FollowsTheNorm:
    """Computes the norm once, asks the subclass for a limit, scales by it."""

    def clip_(self, parameters: Iterable[Tensor]) -> Tensor:
        """Clips the gradients in place; returns their norm before, 0-d.

        The history lives on the host, so on a GPU this waits for the norm.
        """
        parameters = list(parameters)
        grads = [p.grad for p in parameters if p.grad is not None]
        total = get_total_norm(grads)
        limit = self._limit(total.item())
        if math.isfinite(limit):
            clip_grads_with_norm_(parameters, limit, total)
        return total

    def _limit(self, norm: float) -> float:
        raise NotImplementedError


class AutoClip(_FollowsTheNorm):
    """Clips to a percentile of the gradient norms seen so far.

    Args:
        percentile: of the history, this step's norm included; 0 < percentile <= 100.
        history: how many norms are kept, the oldest forgotten first; None keeps all.

    Source: Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks", MLSP 2020 (arXiv 2007.14469).
    """

    def __init__(self, percentile: float = 10.0, history: int | None = None) -> None:
        if not 0 < _number("percentile", percentile) <= 100:
            raise ValueError(f"percentile must be over 0 and at most 100, got {percentile!r}")
        self.percentile = percentile
        self._norms: deque[float] = deque(maxlen=history)

    def _limit(self, norm: float) -> float:
        if math.isfinite(norm):
            self._norms.append(norm)
        if not self._norms:
            return math.inf
        norms = torch.tensor(list(self._norms), dtype=torch.float64)
        return torch.quantile(norms, self.percentile / 100).item()

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._norms.clear()
        self._norms.extend(state["norms"])


class ZClip(_FollowsTheNorm):
    """Clips norms that stand out from an exponential moving mean and variance of the norms.

    A norm of z-score z over `threshold` is clipped to ``mean + threshold^2 / z * deviation``, and
    that enters the statistics in its place. Nothing is clipped during warm-up.

    Args:
        threshold: z-score above which a norm is an outlier; > 0.
        alpha: what the moving statistics keep at each step; in [0, 1).
        warmup: steps whose plain mean and variance start the statistics; at least 2.

    Source: Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025
    (arXiv 2504.02507).
    """

    def __init__(self, threshold: float = 2.5, alpha: float = 0.97, warmup: int = 25) -> None:
        if not threshold > 0 or not 0 <= alpha < 1 or warmup < 2:
            raise ValueError(
                "threshold must be > 0, alpha in [0, 1) and warmup at least 2, got "
                f"{threshold!r}, {alpha!r}, {warmup!r}"
            )
        self.threshold, self.alpha, self.warmup = threshold, alpha, warmup
        self._first: list[float] = []
        self._mean = self._variance = math.nan

    def _limit(self, norm: float) -> float:
        if not math.isfinite(norm):
            return math.inf if len(self._first) < self.warmup else self._mean
        if len(self._first) < self.warmup:
            self._first.append(norm)
            first = torch.tensor(self._first, dtype=torch.float64)
            self._mean, self._variance = first.mean().item(), first.var(correction=0).item()
            return math.inf
        deviation = math.sqrt(self._variance)
        z = (norm - self._mean) / (deviation + 1e-12)
        outlier = z > self.threshold
        limit = self._mean + self.threshold**2 / z * deviation if outlier else math.inf
        seen = limit if outlier else norm
        new_mean = self.alpha * self._mean + (1 - self.alpha) * seen
        self._variance = self.alpha * self._variance + (1 - self.alpha) * (seen - new_mean) ** 2
        self._mean = new_mean
        return limit

    def state_dict(self) -> dict[str, Any]:
        return {"first": list(self._first), "mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first = list(state["first"])
        self._mean, self._variance = state["mean"], state["variance"]


class AGC:
    """Adaptive gradient clipping: each unit's gradient norm to a fraction of its weight norm.

    A unit is one row of a matrix or one output filter of a convolution; a bias or a gain counts as
    one unit. ``g *= min(1, clipping * max(|w|, eps) / |g|)`` per unit.

    Args:
        clipping: the fraction; > 0.
        eps: stands for the norm of weights below it, so that zero weights can grow.

    Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization",
    ICML 2021 (arXiv 2102.06171). Leave the last linear layer out, as the paper does.
    """

    def __init__(self, clipping: float = 0.01, eps: float = 1e-3) -> None:
        if not clipping > 0 or not eps >= 0:
            raise ValueError(f"clipping must be > 0 and eps >= 0, got {clipping!r}, {eps!r}")
        self.clipping, self.eps = clipping, eps

    def clip_(self, parameters: Iterable[Tensor]) -> None:
        """Clips the gradients in place, without waiting for a GPU.

        On the CPU all of them in one call that reads weights and gradients once and writes only
        units that are clipped; elsewhere in a few torch calls for each parameter.

        Args:
            parameters: of any shape and floating dtype; those without a gradient are skipped.
        """
        clip_units_(parameters, self.clipping, self.eps)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the limit depends on the weights alone."""
