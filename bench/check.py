"""Measures again and compares with the committed rows, by ratio: a loss of over 20 % fails.

    python bench/check.py                    # all of `make bench`
    python bench/check.py -k 1000            # pytest's choice of benchmarks
    python bench/check.py --against FOLDER   # rows of FASTCLIP_BENCH_RESULTS=FOLDER make bench

Times of another day are not comparable; the ratio of fastclip to the baseline that was interleaved
with it is, mostly. That of another processor is not: only rows of this one and of as many threads
are compared, and on a machine that has none, rows of the code before a change are its --against.
What fails is measured once more, and the better one counts.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
import torch

from fastclip.benchmark.machine import cpu_name

LEAST = 0.8  # of the committed speedup
Key = tuple[str, ...]


def speedups(folder: Path) -> dict[Key, float]:
    """Of fastclip's rows in a folder, by (file, device, threads) and `measure.KEY`."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                ours = row.get("variant", "").startswith("fastclip") and row.get("speedup")
                if ours:
                    names = ("device", "threads", *measure.KEY)
                    key = (path.stem, *(row[name] for name in names))
                    found[key] = float(row["speedup"])
    return found


def losses(committed: dict[Key, float], new: dict[Key, float]) -> dict[Key, str]:
    """A line for each row that lost more than a fifth of its speedup."""
    return {
        key: f"{', '.join(key[3:])}: {new[key]:.2f}x, was {committed[key]:.2f}x"
        for key in sorted(committed.keys() & new.keys())
        if new[key] < LEAST * committed[key]
    }


def run(chosen: list[str], folder: Path) -> int:
    """The benchmarks, with rows written to `folder`; pytest's exit status."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", str(here), "--benchmark-enable"]
    command += ["-m", "not slow", *chosen]
    environment = {**os.environ, "FASTCLIP_BENCH_RESULTS": str(folder)}
    return subprocess.run(command, env=environment, stdout=sys.stderr).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="pytest's -k")
    parser.add_argument("--against", type=Path, default=measure.COMMITTED, metavar="FOLDER")
    arguments = parser.parse_args()
    keyword, committed = arguments.k, speedups(arguments.against)
    here = (cpu_name(), str(torch.get_num_threads()))
    if not any(key[1:3] == here for key in committed):  # before minutes go into measuring
        print(
            f"nothing to compare with: {arguments.against} has no row of {here[0]} on {here[1]} "
            "threads. Measure the code before your change: FASTCLIP_BENCH_RESULTS=FOLDER make "
            "bench; then --against FOLDER."
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        first, again = Path(folder, "first"), Path(folder, "again")
        if status := run(["-k", keyword] if keyword else [], first):
            return status
        new = speedups(first)
        lost = losses(committed, new)
        if lost:
            print(f"{len(lost)} rows are slower: measured once more", file=sys.stderr)
            if status := run(["-k", keyword] if keyword else [], again):
                return status
            second = speedups(again)
            best = {key: max(value, second.get(key, 0)) for key, value in new.items()}
            lost = losses(committed, best)
    if not new.keys() & committed.keys():
        print(f"nothing was compared: {arguments.against} has no row of these benchmarks")
        return 1
    for line in lost.values():
        print(line)
    print(f"{len(new.keys() & committed.keys())} rows compared, {len(lost)} lost over 20 %")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
