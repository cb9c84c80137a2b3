"""The tests marked gpu, in several processes, and a few of them under compute-sanitizer."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from gpu import rehearsal, supervise

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
PYTEST += ["-o", "addopts="]  # not every machine has the plugins that the project's options name
ON_HOST = [
    "-k",
    "host and (its_factor or versions)",
    "tests/grad_norm/test_grad_norm_gpu.py",
    "tests/clipping/test_unit_clip_gpu.py",
]
ALONE = "2_to_the_31"  # needs most of the device's memory
TEST_SECONDS = float(os.environ.get("FASTCLIP_TEST_SECONDS", 90))  # for one, with its kernels
TOOLS = ("memcheck", "racecheck")
SANITIZED = (
    "cuda and (lists_of_any_length and 382 or its_factor or clip_grad_norm_as_float64"
    " or as_the_reference or not_finite_or_zero)"
)
SANITIZED_FILES = ("grad_norm/test_grad_norm_gpu.py", "clipping/test_unit_clip_gpu.py")
FOUND_ERRORS = 86  # an exit status that neither Python nor pytest has


def run_tests(out: Path, on: str, deadline: float) -> supervise.Outcome:
    """The outcome of every test marked gpu; several processes share Triton's cache on disk."""
    names = collect(on)
    if not names:
        return supervise.Outcome(failed={"tests": "none was collected: see tests.log"})
    alone = [name for name in names if ALONE in name]
    together = [name for name in names if ALONE not in name]
    count = max(1, min(4, (os.cpu_count() or 1) // 2, len(together)))
    outcome = supervise.Outcome()
    with ThreadPool(count) as pool:
        for part in pool.starmap(
            _run_group,
            [(out / f"tests-{i}.jsonl", g, deadline) for i, g in enumerate(share(together, count))],
        ):
            outcome.add(part)
    if alone:
        outcome.add(_run_group(out / "tests-alone.jsonl", alone, deadline))
    return outcome


def collect(on: str) -> list[str]:
    """The tests' names in the order of files: so the kernels of an op compile one after another."""
    chosen = ["-m", "gpu", "tests"] if on == "cuda" else ON_HOST
    if rehearsal.WANTED:
        only = f"({ON_HOST[1]}) or test_rehearsed or after_the_faults"
        chosen = ["-k", only, *ON_HOST[2:], "bench/gpu/rehearsed_tests.py"]
    command = [*PYTEST, "--collect-only", *chosen]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if "::" in line]


def share(names: Sequence[str], count: int) -> list[list[str]]:
    """Names in groups of about one size; the tests of one function stay together."""
    groups: list[list[str]] = [[] for _ in range(count)]
    for _, same in itertools.groupby(names, key=lambda name: name.partition("[")[0]):
        min(groups, key=len).extend(same)
    return [group for group in groups if group]


def _run_group(journal: Path, names: list[str], deadline: float) -> supervise.Outcome:
    start = [*PYTEST, "-p", "gpu.outcomes", "--journal", str(journal)]
    return supervise.supervise(lambda rest: [*start, *rest], names, journal, deadline, TEST_SECONDS)


def run_sanitizer(out: Path, deadline: float) -> str:
    """What memcheck and racecheck found in CUDA's clipping kernels."""
    command = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if command is None:
        return "not found on this machine: nothing was checked"
    chosen = ["-m", "gpu", "-k", SANITIZED, *(str(TESTS / name) for name in SANITIZED_FILES)]
    found = []
    for tool in TOOLS:
        log = out / f"{tool}.log"
        prefix = [command, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS)]
        status = _run([*prefix, *PYTEST, *chosen], log, max(1, deadline - time.monotonic()))
        lines = log.read_text().splitlines()
        ran = next((line for line in reversed(lines) if " passed" in line), "no test passed")
        verdicts = {0: "clean" if ran in lines else "nothing seen", FOUND_ERRORS: "ERRORS"}
        verdict = "out of time" if status is None else verdicts.get(status, f"exit {status}")
        found.append(f"{tool} {verdict} ({ran})")
    return "; ".join(found)


def _run(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """The exit status, or None where time ran out."""
    with log.open("w") as file:
        try:
            return subprocess.run(
                command, timeout=seconds, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {seconds:.0f} s")
            return None
