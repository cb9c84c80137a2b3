"""Clippers whose limit follows the gradient norms seen so far: what they share, and AutoClip."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastclip.clipping.adaptive.quantile import RunningQuantile
from fastclip.clipping.clip import _number, clip_grads_with_norm_, get_total_norm
from fastclip.clipping.names import Tensors, as_tensors
from fastclip.ops.grad_norm.backends import Grads, collect
from fastclip.ops.grad_norm.reference import EPS


class FollowsTheNorm:
    """Computes the norm once, asks the subclass for a limit, scales by it.

    Norms of 0 (no gradients at all, or zeros: accumulation, frozen phases) and norms that are not
    finite say nothing of the gradients' size, and never reach the subclass's statistics.
    """

    def clip_(self, parameters: Tensors) -> Tensor:
        """Clips the gradients in place; returns their norm before, 0-d, as ``get_total_norm`` does.

        A norm over the limit is scaled to it exactly, with no 1e-6 in the factor. The statistics
        live on the host, so on a GPU this waits for the norm.

        Args:
            parameters: a tensor or an iterable of tensors, whose ``.grad`` is clipped, or
                ``model.named_parameters()``.
        """
        parameters = as_tensors(parameters)
        grads = collect(parameters, take_grads=True)
        if grads is not None and not (grads and grads.has_norm(2.0)):
            grads = None
        if grads is None:
            total = get_total_norm([p.grad for p in parameters if p.grad is not None])
            norm = float(total)
        else:
            total, norm = grads.total_norm(2.0), float(grads.exact_norm(2.0))
        limit = self._limit(norm) if norm else math.inf
        if norm > limit and math.isfinite(norm):
            _scale(grads, parameters, limit / norm)
        elif not math.isfinite(norm) and math.isfinite(limit):
            clip_grads_with_norm_(parameters, limit, total)
        return total

    def _limit(self, norm: float) -> float:
        """Takes a norm over 0 into the statistics, if it is finite; infinity clips nothing."""
        raise NotImplementedError


class AutoClip(FollowsTheNorm):
    """Clips to a percentile of the gradient norms seen so far.

    Args:
        percentile: of the history, this step's norm included; 0 < percentile <= 100. Exact, and
            interpolated as ``torch.quantile`` does.
        history: how many norms are kept, the oldest forgotten first, at least 1; None keeps all.
            A step costs the logarithm of that number.

    Raises:
        ValueError, TypeError: an argument is out of its range, or no number.

    Source: Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks", MLSP 2020 (arXiv 2007.14469).
    """

    def __init__(self, percentile: float = 10.0, history: int | None = None) -> None:
        if not 0 < _number("percentile", percentile) <= 100:
            raise ValueError(f"percentile must be over 0 and at most 100, got {percentile!r}")
        self.percentile = percentile
        history = None if history is None else count("history", history, least=1)
        self._norms = RunningQuantile(float(percentile) / 100, history)

    def _limit(self, norm: float) -> float:
        if math.isfinite(norm):
            self._norms.add(norm)
        return self._norms.value() if len(self._norms) else math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self._norms.numbers()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_keys(self, state, "norms")
        self._norms.clear()
        self._norms.extend(norm for norm in state["norms"] if 0 < norm < math.inf)


def count(name: str, value: int, least: int) -> int:
    """A whole number of at least `least`; ValueError or TypeError with the argument's name."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)


def require_keys(clipper: object, state: dict[str, Any], *names: str) -> None:
    """Raises where a state is not one that this clipper's ``state_dict`` gave."""
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(
            f"this is no state of {type(clipper).__name__}: it has no {', '.join(missing)}, only "
            f"{', '.join(map(str, state)) or 'nothing'}"
        )


def _scale(grads: Grads | None, parameters: list[Tensor], factor: float) -> None:
    """Multiplies the gradients by a factor under 1: torch's 1e-6 is taken off the norm before."""
    norm = torch.tensor(1 / factor - EPS if factor else math.inf, dtype=torch.float64, device="cpu")
    if grads is None:
        clip_grads_with_norm_(parameters, 1.0, norm)
    else:
        grads.clip_by_(1.0, norm)
