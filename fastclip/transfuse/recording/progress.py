"""What a progress line tells beside the losses: the time that is left, the memory in use."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch


class Eta:
    """How long a run still takes, by the pace of this process, validations included.

    Args:
        step: the step that this process begins at.
        steps: the step that ends the run.
        limit_s: seconds that end it, if they come first.
        spent_s: seconds that the run has taken, earlier processes too.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        limit_s: float | None,
        spent_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.first, self.steps = step, steps
        self.limit_s, self.spent_s, self.clock = limit_s, spent_s, clock
        self.started = clock()

    def seconds(self, step: int) -> float | None:
        """Seconds from step `step` on; None where nothing tells yet."""
        left = None if self.limit_s is None else max(0.0, self.limit_s - self.spent_s())
        done = step - self.first
        if done <= 0:
            return left
        by_steps = (self.clock() - self.started) / done * max(0, self.steps - step)
        return by_steps if left is None else min(by_steps, left)


def duration(seconds: float) -> str:
    """'42 s', '3:05 min' or '2:03:05 h'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def memory_mib(device: torch.device) -> float | None:
    """The most memory that was in use so far, MiB: of tensors on a GPU, or of this process.

    On MPS, what is in use now; None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def memory_text(mib: float) -> str:
    """'812 MiB' or '3.4 GiB'."""
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"
