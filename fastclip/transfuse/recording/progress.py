"""What a progress line tells beside the losses: the time that is left, the memory in use."""

from __future__ import annotations

import sys
import time

import torch


class Eta:
    """How long a run still takes, by the pace of this process, validations included.

    Args:
        step: the step that this process begins at.
        clock: seconds, monotonic.
    """

    def __init__(self, step: int, clock: float | None = None) -> None:
        self.first = step
        self.started = time.monotonic() if clock is None else clock

    def seconds(
        self, step: int, steps: int, left: float | None = None, clock: float | None = None
    ) -> float | None:
        """Seconds from step `step` to step `steps`; None before the first step.

        Args:
            step: steps made so far, those before this process too.
            steps: at which the run ends.
            left: seconds until a limit in time ends it, where there is one.
            clock: as in the constructor.
        """
        done = step - self.first
        if done <= 0:
            return left
        now = time.monotonic() if clock is None else clock
        by_steps = (now - self.started) / done * max(0, steps - step)
        return by_steps if left is None else min(by_steps, max(0.0, left))


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
