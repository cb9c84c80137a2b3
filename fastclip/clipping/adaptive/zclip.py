"""ZClip: gradient norms that stand out from their moving mean and deviation are clipped."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fastclip.clipping.adaptive.autoclip import FollowsTheNorm, count, require_keys
from fastclip.clipping.clip import _number
from fastclip.clipping.names import Tensors

_MODES = ("zscore", "percentile")
_CLIP_OPTIONS = ("adaptive_scaling", "mean")
_NAMES = {"reciprocal": "adaptive_scaling"}  # as the paper calls it


class ZClip(FollowsTheNorm):
    """Clips norms that stand out from an exponential moving mean and variance of the norms.

    A norm g has the z-score ``z = (g - mean) / (deviation + eps)``. Over `threshold` it is clipped:

    - ``clip_option="adaptive_scaling"`` (the paper's reciprocal clipping) to ``clip_factor * (mean
      + threshold * deviation / (z / threshold))``: the further out, the closer to the mean;
    - ``clip_option="mean"`` to the mean;
    - ``mode="percentile"`` takes no z-score: all over ``mean + threshold * deviation`` to that.

    The norm after that enters the statistics. During warm-up only `max_grad_norm` clips.

    Args:
        threshold: z-score above which a norm is a spike; > 0 (published as z_thresh).
        alpha: what the moving statistics keep at each step; in [0, 1).
        warmup: steps whose plain mean and variance start the statistics; at least 2.
        mode: ``"zscore"`` or ``"percentile"``.
        clip_option: ``"adaptive_scaling"`` (also ``"reciprocal"``) or ``"mean"``; of z-scores.
        clip_factor: multiplies the adaptive limit, 0.5 to 0.9 to clip harder; > 0.
        max_grad_norm: a limit that holds always, in warm-up too; None for none (published: 1.0).
        skip_update_on_spike: leave spikes out of the statistics altogether.
        eps: added to the deviation that divides; >= 0.

    Attributes:
        spiked: whether the norm of the last call was a spike (or not finite): skip the step with
            ``if not clipper.spiked: optimizer.step()``.

    Raises:
        ValueError, TypeError: an argument is out of its range, or of the wrong type.

    Source: Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025
    (arXiv 2504.02507), with the options of its published code.
    """

    def __init__(
        self,
        threshold: float = 2.5,
        alpha: float = 0.97,
        warmup: int = 25,
        *,
        mode: str = "zscore",
        clip_option: str = "adaptive_scaling",
        clip_factor: float = 1.0,
        max_grad_norm: float | None = None,
        skip_update_on_spike: bool = False,
        eps: float = 1e-6,
    ) -> None:
        self.threshold = _over_zero("threshold", threshold)
        self.alpha = _number("alpha", alpha)
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {alpha!r}")
        self.warmup = count("warmup", warmup, least=2)
        self.mode = _one_of("mode", mode, _MODES)
        option = _NAMES.get(clip_option, clip_option)
        self.clip_option = _one_of("clip_option", option, _CLIP_OPTIONS)
        self.clip_factor = _over_zero("clip_factor", clip_factor)
        no_cap = max_grad_norm is None
        self.max_grad_norm = math.inf if no_cap else _over_zero("max_grad_norm", max_grad_norm)
        self.skip_update_on_spike = skip_update_on_spike
        self.eps = _number("eps", eps)
        if not self.eps >= 0:
            raise ValueError(f"eps must be at least 0, got {eps!r}")
        self.spiked = False
        self._first: list[float] = []
        self._mean = self._variance = math.nan

    def clip_(self, parameters: Tensors) -> Tensor:
        self.spiked = False  # of a norm of 0, which `_limit` never sees
        return super().clip_(parameters)

    def _limit(self, norm: float) -> float:
        warm = len(self._first) >= self.warmup
        self.spiked = not math.isfinite(norm)
        if self.spiked:
            return min(self._mean if warm else math.inf, self.max_grad_norm)
        if not warm:
            self._warm_up(norm)
            return self.max_grad_norm
        limit = self._adaptive_limit(norm)
        self.spiked = limit < math.inf
        if not (self.spiked and self.skip_update_on_spike):
            self._update(limit if self.spiked else norm)
        return min(limit, self.max_grad_norm)

    def _warm_up(self, norm: float) -> None:
        self._first.append(norm)
        count = len(self._first)
        self._mean = math.fsum(self._first) / count
        self._variance = math.fsum((x - self._mean) ** 2 for x in self._first) / count

    def _adaptive_limit(self, norm: float) -> float:
        """The limit of a spike; infinite for other norms."""
        deviation = math.sqrt(self._variance)
        if self.mode == "percentile":
            limit = self._mean + self.threshold * deviation
            return limit if norm > limit else math.inf
        over, scale = norm - self._mean, deviation + self.eps
        if not over > self.threshold * scale:  # z > threshold, where a deviation of 0 divides
            return math.inf
        if self.clip_option == "mean":
            return self._mean
        reciprocal = self.threshold**2 * scale / over  # threshold^2 / z
        return self.clip_factor * (self._mean + reciprocal * deviation)

    def _update(self, norm: float) -> None:
        self._mean = self.alpha * self._mean + (1 - self.alpha) * norm
        self._variance = self.alpha * self._variance + (1 - self.alpha) * (norm - self._mean) ** 2

    def state_dict(self) -> dict[str, Any]:
        return {"first": list(self._first), "mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_keys(self, state, "first", "mean", "variance")
        self._first = list(state["first"])
        self._mean, self._variance = state["mean"], state["variance"]


def _over_zero(name: str, value: Any) -> float:
    number = _number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be over 0, got {value!r}")
    return number


def _one_of(name: str, value: str, names: tuple[str, ...]) -> str:
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {value!r}")
    return value
