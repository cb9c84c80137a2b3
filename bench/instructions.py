"""Instructions that one call costs, counted by callgrind: the machine's mood is no part of them.

    python bench/instructions.py            # counts, writes results/instructions.csv
    python bench/instructions.py --check    # counts, and fails where a call costs 5 % more

Tensors have 16 elements: what is counted is the host's work, a call's and a tensor's. One thread;
the interpreter's hash seed is fixed. Counts of another Python, torch, processor family or valgrind
are other counts: rows name theirs, and only rows of the same are compared.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

COMMITTED = Path(__file__).parent / "results" / "instructions.csv"
COLUMNS = ("call", "tensors", "instructions", "python", "torch", "valgrind", "machine")
TOOLS = ("python", "torch", "valgrind", "machine")
MORE, SLACK = 1.05, 3000  # one checkout counts the same again; other paths and names hash otherwise
TENSORS = (10, 1000)
WARM_UP = 20  # the interpreter specialises code after eight calls or so; before, counts vary
# Each call is counted so often, and the least is its cost: the first after a warm-up, and now and
# then another, takes some 2 % more.
REPEATS = 3
CLIENT = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void stop(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
"""


def missing() -> str:
    """What this machine lacks to count, or nothing."""
    for tool in ("valgrind", "gcc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    header = Path("/usr/include/valgrind/callgrind.h")
    return "" if header.exists() else f"{header} is missing"


def calls(count: int) -> dict[str, Callable[[], object]]:
    """The calls that are counted, over so many tensors."""
    import torch
    from torch import nn

    import fastclip

    def parameters() -> list[nn.Parameter]:
        made = [nn.Parameter(torch.ones(4, 4)) for _ in range(count)]
        for p in made:
            p.grad = torch.ones(4, 4)
        return made

    model = nn.ModuleList(nn.Linear(4, 4) for _ in range(count // 2))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    params, agc = parameters(), fastclip.AGC()
    groups = [{"params": params[::2]}, {"params": params[1::2]}]
    limit = [1e6]

    def clipping() -> None:
        limit[0] = 1.0 if limit[0] > 1 else limit[0] * 0.9
        fastclip.clip_grad_norm_(params, limit[0])

    return {
        "clip_grad_norm_": lambda: fastclip.clip_grad_norm_(params, 1e9),
        "clip_grad_norm_, clipping": clipping,
        "clip_grad_value_": lambda: fastclip.clip_grad_value_(params, 1e9),
        "clip_groups_": lambda: fastclip.clip_groups_(groups, 1e9),
        "AGC.clip_": lambda: agc.clip_(params),
        "grad_norms": lambda: fastclip.grad_norms(model),
        "param_groups": lambda: fastclip.param_groups(model, lr=1e-3, weight_decay=0.1),
    }


def run(library: str) -> None:
    """Inside valgrind: each call warmed up, then counted; an empty count comes first."""
    import torch

    torch.set_num_threads(1)
    client = ctypes.CDLL(library)
    client.start()
    client.stop()
    for count in TENSORS:
        for call in calls(count).values():
            for _ in range(WARM_UP):
                call()
            gc.collect()
            gc.disable()
            for _ in range(REPEATS):
                client.start()
                call()
                client.stop()
            gc.enable()


def counted() -> list[dict[str, str]]:
    """Rows of all calls, from one run under callgrind."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "client.c"), Path(folder, "client.so")
        source.write_text(CLIENT)
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True
        )
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        own = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        path = os.pathsep.join((str(Path(__file__).parents[1]), *filter(None, sys.path)))
        command = ["valgrind", *options, sys.executable, __file__, "--run", str(library)]
        done = subprocess.run(
            command, env={**os.environ, **own, "PYTHONPATH": path}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"valgrind failed:\n{done.stderr[-2000:]}")
        counts = REPEATS * len(_keys())
        empty, *totals = [_total(Path(folder, f"out.{i + 1}")) for i in range(1 + counts)]
    tools = versions()
    rows = []
    for i, (call, count) in enumerate(_keys()):
        least = min(totals[REPEATS * i : REPEATS * (i + 1)]) - empty
        rows.append({"call": call, "tensors": str(count), "instructions": str(least), **tools})
    return rows


def _keys() -> list[tuple[str, int]]:
    return [(name, count) for count in TENSORS for name in calls(0)]


def _total(path: Path) -> int:
    found = re.search(r"^totals: (\d+)", path.read_text(), flags=re.MULTILINE)
    if found is None:
        raise RuntimeError(f"callgrind wrote no totals to {path.name}")
    return int(found[1])


def versions() -> dict[str, str]:
    """What a count depends on."""
    import torch

    said = subprocess.check_output(["valgrind", "--version"], text=True)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "valgrind": said.strip().removeprefix("valgrind-"),
        "machine": platform.machine(),
    }


def committed() -> list[dict[str, str]]:
    """The rows of the repository."""
    with COMMITTED.open(newline="") as file:
        return list(csv.DictReader(file))


def incomparable() -> str:
    """Why counts made here cannot be compared with the committed ones, or nothing."""
    if reason := missing():
        return reason
    here = versions()
    for tool in TOOLS:
        known = {row[tool] for row in committed()}
        if known != {here[tool]}:
            return f"the rows were counted with {tool} {', '.join(sorted(known))}, not {here[tool]}"
    return ""


def worse(new: list[dict[str, str]], old: list[dict[str, str]]) -> list[str]:
    """A line for each call that costs more than it did, or that is in one of the two only."""
    before = {(row["call"], row["tensors"]): int(row["instructions"]) for row in old}
    after = {(row["call"], row["tensors"]): int(row["instructions"]) for row in new}
    lines = [
        f"{call}, {count} tensors: {now:,} instructions, {now / cost:.2f} of what it was"
        for (call, count), cost in before.items()
        if (now := after.get((call, count), 0)) > MORE * cost + SLACK
    ]
    apart = sorted(set(before) ^ set(after))
    return lines + [
        f"{call}, {count} tensors: counted or committed, not both" for call, count in apart
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed rows")
    parser.add_argument("--run", metavar="LIBRARY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run)
        return 0
    if reason := incomparable() if arguments.check else missing():
        print(f"skipped: {reason}")
        return 0
    rows = counted()
    for row in rows:
        print(f"{row['call']:28}{row['tensors']:>6} tensors{int(row['instructions']):>14,}")
    if arguments.check:
        lines = worse(rows, committed())
        print(*(lines or ["no call costs more than it did"]), sep="\n")
        return int(bool(lines))
    from measure import RESULTS  # imports torch, which valgrind's runs do in their own time

    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "instructions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
