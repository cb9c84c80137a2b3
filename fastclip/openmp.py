"""How torch's own threads on a CPU wait for work: OpenMP reads it once, when torch is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# What a user may have decided by; the first is libgomp's, the OpenMP of torch's wheels on Linux.
SPIN = "GOMP_SPINCOUNT"
DECIDED = (SPIN, "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
# Microseconds instead of libgomp's milliseconds. Beside other processes, threads that spin for long
# are off the processor when the next loop needs them, and each loop waits a time slice for them;
# threads that sleep at once cost a quiet machine a quarter of its images per second:
# bench/bench_trainer_busy.py measures all three.
SHORT = "1000"


def short_spin(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which threads spin briefly; None where the user, or this, has decided."""
    if sys.platform != "linux" or any(name in environment for name in DECIDED):
        return None
    return {**environment, SPIN: SHORT}


def restart_with_short_spin() -> None:
    """Start this process anew with such an environment; OpenMP reads it when torch is loaded.

    The process stays the same to whoever started it. Does nothing where it has been decided, or
    where Python does not say how it was started.
    """
    changed = short_spin(os.environ)
    if changed is not None and sys.executable and len(sys.orig_argv) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)
