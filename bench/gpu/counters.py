"""Memory traffic and time of our kernels by ncu's counters, where a machine has it and lets us."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

KERNELS = "regex:norm_kernel|scale_kernel|column_sums|image_sums|gradients"
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)
ITEMS = ("1 x 1 GiB fp32, clipping", "transfuse_s fp32, clipping", "structure loss")
LAUNCHES = "12"
SECONDS = 40


def run_counters(out: Path, deadline: float) -> str:
    """Has ncu watch the kernels of a few rows of the table; ncu.csv gets what it counts."""
    command = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if command is None:
        return "not found on this machine: nothing was counted"
    seconds = min(SECONDS, deadline - time.monotonic())
    if seconds < 1:
        return "out of time"
    watch = [command, "--csv", "--log-file", str(out / "ncu.csv"), "--kernel-name", KERNELS]
    watch += ["--metrics", ",".join(METRICS), "--launch-count", LAUNCHES]
    worker = [sys.executable, "-m", "gpu.rows", "--device", "cuda"]
    worker += ["--journal", str(out / "ncu.jsonl"), *ITEMS]
    with (out / "ncu.log").open("w") as log:
        try:
            done = subprocess.run(
                [*watch, *worker], stdout=log, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s: see ncu.csv"
    counted = (out / "ncu.csv").read_text() if (out / "ncu.csv").exists() else ""
    if "ERR_NVGPUCTRPERM" in counted + (out / "ncu.log").read_text():
        return "this machine lets no one read its counters (ERR_NVGPUCTRPERM)"
    return "see ncu.csv" if done.returncode == 0 else f"exit {done.returncode}: see ncu.log"
