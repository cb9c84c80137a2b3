"""The learning rate as a function of how far training has come."""

from __future__ import annotations

import math
from dataclasses import dataclass


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

    def spent(self, step: int, seconds: float) -> bool:
        """True when training has to end."""
        return self.progress(step, seconds) >= 1.0


def lr_factor(schedule: str, step: int, warmup_steps: int, progress: float) -> float:
    """Factor of the peak learning rate for the step numbered `step`, from 0.

    Linear warm-up over `warmup_steps`, times the decay of `schedule` ('constant', 'linear',
    'cosine') at `progress` in 0..1.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "linear":
        return warmup * (1.0 - progress)
    if schedule == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * progress))
    return warmup
