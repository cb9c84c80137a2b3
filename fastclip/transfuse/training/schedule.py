"""The learning rate as a function of how far training has come."""

from __future__ import annotations

import math
from dataclasses import dataclass

ONE_CYCLE_START = 1 / 25  # of the peak; as torch.optim.lr_scheduler.OneCycleLR
ONE_CYCLE_RISE = 0.3  # share of the run


@dataclass(frozen=True)
class Budget:
    """When training ends: at a step, or at a time if that comes first."""

    total_steps: int
    total_seconds: float | None = None

    def __str__(self) -> str:
        time = f" or {self.total_seconds / 60:g} min" if self.total_seconds else ""
        return f"{self.total_steps} steps{time}"

    def progress(self, step: int, seconds: float) -> float:
        """0 at the start, 1 at the end, by whichever limit is nearer."""
        by_step = step / self.total_steps
        by_time = seconds / self.total_seconds if self.total_seconds else 0.0
        return min(1.0, max(by_step, by_time))

    def seconds_left(self, seconds: float) -> float | None:
        """Until the limit of time; None without one."""
        return None if self.total_seconds is None else self.total_seconds - seconds

    def spent(self, step: int, seconds: float) -> bool:
        """True when training has to end."""
        return self.progress(step, seconds) >= 1.0


@dataclass(frozen=True)
class Schedule:
    """Factor on the peak learning rate: a linear warm-up times a decay.

    Args:
        kind: 'constant', 'linear', 'cosine', 'poly', 'step' or 'one-cycle'.
        warmup_steps: of the linear rise.
        floor: where the decay ends, as a share of the peak.
        power: of poly.
        decay_steps, decay_rate: of step.
    """

    kind: str
    warmup_steps: int = 0
    floor: float = 0.0
    power: float = 0.9
    decay_steps: float = math.inf
    decay_rate: float = 0.1

    def factor(self, step: int, progress: float) -> float:
        """The factor of the step numbered `step`, from 0, at `progress` in 0..1 of the budget."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.kind == "one-cycle" and progress < ONE_CYCLE_RISE:
            return _between(1.0, ONE_CYCLE_START, _half_cosine(progress / ONE_CYCLE_RISE))
        return warmup * _between(self.floor, 1.0, self._decay(step, progress))

    def _decay(self, step: int, progress: float) -> float:
        """1 at the start; 0, but for constant and step, at the end."""
        if self.kind == "linear":
            return 1.0 - progress
        if self.kind == "cosine":
            return _half_cosine(progress)
        if self.kind == "poly":
            return float((1.0 - progress) ** self.power)
        if self.kind == "step":
            return float(self.decay_rate ** (step // self.decay_steps))
        if self.kind == "one-cycle":
            return _half_cosine((progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))
        return 1.0


def _half_cosine(progress: float) -> float:
    """1 -> 0 as progress goes 0 -> 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def changed_rates(
    schedule: Schedule, budgets: tuple[Budget, Budget], step: int, seconds: float
) -> tuple[float, float] | None:
    """What another budget changes: the factors at a step under the one and the other.

    None where the budgets are equal, or the schedule does not look at them.
    """
    past_warmup = max(step, schedule.warmup_steps)
    looks = schedule.factor(past_warmup, 0.4) != schedule.factor(past_warmup, 0.8)
    if budgets[0] == budgets[1] or not looks:
        return None
    was, now = (schedule.factor(step, b.progress(step, seconds)) for b in budgets)
    return was, now
