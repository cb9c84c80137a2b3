"""Everything that a few minutes on a GPU can teach: checks, the table, tests, a training run.

    PYTHONPATH=.:bench python3 -m gpu.run --out FOLDER [--minutes 8] [--data FOLDER]

Results first: one correctness pass, then the table, each row written as it is measured, what ncu
counts of a few of them, then the long tests and, with --data, TransFuse_S for the minutes left.
Workers do each part, so that a failing kernel, a hanging test or a lost device costs one item.
FOLDER gets gpu.csv, a journal and a log of each part, and traces. The exit status is 1 where
anything failed.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastclip.report import report
from gpu import device, supervise
from gpu.counters import run_counters
from gpu.table import COLUMNS
from gpu.tests import run_sanitizer, run_tests
from gpu.worker import command

CHECK_SECONDS = 60  # for all of them; Triton compiles a kernel for each dtype
ITEM_SECONDS = {"gpu.check": 40, "gpu.rows": 90}
TRAINING_SECONDS = 60  # less is not worth the start
BREAKDOWN_SECONDS = 60
SUMMARY_LINES = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything it leaves")
    parser.add_argument("--minutes", type=float, default=8, help="all in all, the build excluded")
    parser.add_argument(
        "--data", default="", help="images to train TransFuse_S on with what is left"
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU's stand-in for CUDA")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing was checked or timed (make gpu-rehearse needs none)")
    args.out.mkdir(parents=True, exist_ok=True)
    set_aside(args.out)
    os.environ["FASTCLIP_TRACES"] = str(args.out)
    if args.rehearse:
        build_stand_in(args.out)
    on = "host" if args.rehearse else "cuda"
    begin = time.monotonic()
    end = begin + 60 * args.minutes
    trains = bool(args.data)
    share = 0.4 if trains else 1.0  # of the time, for tests
    checks = part("gpu.check", on, args.out, min(end, begin + CHECK_SECONDS))
    table = part("gpu.rows", on, args.out, end)
    write_table(args.out)
    counters = "not for rehearsals" if args.rehearse else run_counters(args.out, end)
    tests_end = time.monotonic() + (end - time.monotonic()) * share
    tests = run_tests(args.out, on, tests_end)
    sanitizer = "not for rehearsals" if args.rehearse else run_sanitizer(args.out, tests_end)
    training = train(args.data, args.out, end) if trains else "no --data"
    print_table(args.out)
    outcomes = {"checks": checks, "rows": table, "tests": tests}
    extra = [f"compute-sanitizer: {sanitizer}", f"ncu: {counters}", f"training: {training}"]
    print("\n".join(summary(outcomes, extra, on, time.monotonic() - begin)))
    wrong = any(outcome.failed for outcome in outcomes.values()) or "ERRORS" in sanitizer
    return 1 if wrong or "failed" in training else 0


def part(module: str, on: str, out: Path, deadline: float) -> supervise.Outcome:
    """Has workers of a module do all of its items."""
    journal = out / f"{module.partition('.')[2]}.jsonl"
    listing = [sys.executable, "-m", module, "--device", on, "--list"]
    listed = subprocess.run(listing, capture_output=True, text=True)
    if listed.returncode:
        journal.with_suffix(".log").write_text(listed.stdout + listed.stderr)
        cause = (listed.stderr.strip().splitlines() or [f"exit status {listed.returncode}"])[-1]
        return supervise.Outcome(failed={module: f"does not start: {cause}"})
    items = [line for line in listed.stdout.splitlines() if line]
    worker = command(module, on, journal)
    return supervise.supervise(worker, items, journal, deadline, ITEM_SECONDS[module])


def set_aside(out: Path) -> None:
    """Moves what an earlier run has left into a folder of its own, so that no row of it is taken
    for one of this run."""
    files = [path for path in sorted(out.iterdir()) if path.is_file()]
    if not files:
        return
    folder = out / f"earlier-{1 + len(list(out.glob('earlier-*')))}"
    folder.mkdir()
    for path in files:
        path.rename(folder / path.name)


def build_stand_in(out: Path) -> None:
    """Builds what a rehearsal's workers load; a device's kernels are built before this starts."""
    os.environ["FASTCLIP_ON_HOST"] = str(out.resolve() / "on_host")
    device.of("host")


def rows_of(out: Path) -> list[dict]:
    entries = supervise.entries(out / "rows.jsonl")
    return [row for entry in entries for row in entry.get("rows", [])]  # type: ignore[attr-defined]


def write_table(out: Path) -> None:
    with (out / "gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_of(out))


def print_table(out: Path) -> None:
    shown = COLUMNS[:14]  # to the error
    lines = [[str(row[key]) for key in shown] for row in rows_of(out)]
    widths = [max(len(line[i]) for line in [shown, *lines]) for i in range(len(shown))]
    for line in [shown, *lines]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def train(data: str, out: Path, deadline: float) -> str:
    """TransFuse_S on images for the seconds left; its curve lies in the run's metrics.csv."""
    missing = [m for m in ("timm", "torchvision", "tyro") if importlib.util.find_spec(m) is None]
    if missing:
        return f"skipped: this machine has no {', '.join(missing)}"
    step = break_down(out, deadline)
    left = deadline - time.monotonic()
    if left < TRAINING_SECONDS:
        return f"skipped: {left:.0f} s left, it wants {TRAINING_SECONDS}; {step}"
    minutes = f"{(left - 20) / 60:.2f}"
    options = ["--model", "transfuse_s", "--size", "192x256", "--epochs", "1000", "--overwrite"]
    options += ["--data", data, "--max-time", minutes, "--out", str(out / "train")]
    with (out / "train.log").open("w") as log:
        run: Callable = subprocess.run
        try:
            status = run(
                [sys.executable, "-m", "fastclip", "train", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=left,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"failed: out of time; {step}"
    curve = f"{minutes} min, see train/metrics.csv" if status == 0 else f"failed: exit {status}"
    return f"{curve}; {step}"


def break_down(out: Path, deadline: float) -> str:
    """The parts of a step with torch's functions and with ours, in step.csv."""
    seconds = min(BREAKDOWN_SECONDS, deadline - time.monotonic())
    command = [sys.executable, "-m", "gpu.breakdown", "--out", str(out / "step.csv")]
    with (out / "step.log").open("w") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=max(1.0, seconds)
            )
        except subprocess.TimeoutExpired:
            return "the step's breakdown failed: out of time"
    failed = "the step's breakdown failed: see step.log"
    return failed if done.returncode else "the step's parts: step.csv"


def summary(
    outcomes: dict[str, supervise.Outcome], extra: list[str], on: str, seconds: float
) -> list[str]:
    """What was found and what to do next, in 40 lines at most."""
    head = [*report().splitlines()[:8], f"device: {device.of(on).facts() if on == 'cuda' else on}"]
    counts = [
        f"{name}: {len(o.passed)} passed, {len(o.failed)} failed, {len(o.skipped)} skipped, "
        f"{len(o.left)} not begun"
        for name, o in outcomes.items()
    ]
    failed = [
        f"FAILED {name}: {why[:200]}" for o in outcomes.values() for name, why in o.failed.items()
    ]
    unseen = any(o.left for o in outcomes.values())
    good = "next: commit gpu.csv under bench/results/ with the GPU's name"
    if on == "host":
        good = "a rehearsal: its times mean nothing, and its rows are not for bench/results/"
    next_steps = [
        "next: mend what FAILED, worst first; logs and journals lie in the folder"
        if failed
        else good,
        *(["next: give it more minutes for what was not begun"] if unseen else []),
        f"{seconds:.0f} s",
    ]
    room = SUMMARY_LINES - len(head) - len(counts) - len(extra) - len(next_steps)
    if len(failed) > room:
        failed = [*failed[: room - 1], f"... and {len(failed) - room + 1} more"]
    return [*head, *counts, *failed, *extra, *next_steps]


if __name__ == "__main__":
    sys.exit(main())
