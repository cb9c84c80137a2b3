"""Measures again and compares with the committed rows, by ratio: a loss of over 20 % fails.

    python bench/check.py              # all of `make bench`
    python bench/check.py -k 1000      # pytest's choice of benchmarks

Times of another day or machine are not comparable; the ratio of fastclip to the baseline that was
called in turns with it is, mostly. What fails is measured once more, and the better one counts.
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

LEAST = 0.8  # of the committed speedup
Key = tuple[str, ...]


def speedups(folder: Path) -> dict[Key, float]:
    """Of every row of fastclip's in a folder that has one: (file, bench, case, dtype, variant)."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("variant", "").startswith("fastclip") and row.get("speedup"):
                    key = (path.stem, *(row[name] for name in measure.KEY))
                    found[key] = float(row["speedup"])
    return found


def losses(committed: dict[Key, float], new: dict[Key, float]) -> dict[Key, str]:
    """A line for each row that lost more than a fifth of its speedup."""
    return {
        key: f"{', '.join(key[1:])}: {new[key]:.2f}x, committed {committed[key]:.2f}x"
        for key in sorted(committed.keys() & new.keys())
        if new[key] < LEAST * committed[key]
    }


def run(chosen: list[str], folder: Path) -> int:
    """The benchmarks, with rows written to `folder`; pytest's exit status."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", str(here), "--benchmark-enable", *chosen]
    environment = {**os.environ, "FASTCLIP_BENCH_RESULTS": str(folder)}
    return subprocess.run(command, env=environment, stdout=sys.stderr).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="pytest's -k")
    keyword = parser.parse_args().k
    committed = speedups(measure.COMMITTED)
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
        print("nothing was compared: no row of these benchmarks is committed")
        return 1
    for line in lost.values():
        print(line)
    print(f"{len(new.keys() & committed.keys())} rows compared, {len(lost)} lost over 20 %")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
