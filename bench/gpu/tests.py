"""The tests marked gpu, and a few of them under compute-sanitizer where the machine has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"
TOOLS = ("memcheck", "racecheck")
SANITIZED = "cuda and (lists_of_any_length and 382 or fused_step or clip_grad_norm_as_float64)"
FOUND_ERRORS = 86  # an exit status that neither Python nor pytest has


def run_tests(out: Path, seconds: float) -> str:
    """Runs the tests marked gpu; returns the names of those that failed and pytest's last line."""
    files = [str(p) for p in sorted(TESTS.glob("**/test_*.py")) if "mark.gpu" in p.read_text()]
    _run(["-m", "gpu", *files], [], out / "tests.log", seconds)
    lines = (out / "tests.log").read_text().strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([*failed[:20], lines[-1] if lines else "no output"])


def run_sanitizer(out: Path, seconds: float) -> str:
    """What memcheck and racecheck found in CUDA's clipping kernels."""
    command = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if command is None:
        return "not found on this machine: nothing was checked"
    chosen = ["-m", "gpu", "-k", SANITIZED, str(TESTS / "grad_norm" / "test_grad_norm_gpu.py")]
    found = []
    for tool in TOOLS:
        log = out / f"{tool}.log"
        prefix = [command, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS)]
        status = _run(chosen, prefix, log, seconds)
        lines = log.read_text().splitlines()
        ran = next((line for line in reversed(lines) if " passed" in line), "no test passed")
        verdicts = {0: "clean" if ran in lines else "nothing seen", FOUND_ERRORS: "ERRORS"}
        verdict = "out of time" if status is None else verdicts.get(status, f"exit {status}")
        found.append(f"{tool} {verdict} ({ran})")
    return "; ".join(found)


def _run(arguments: Sequence[str], prefix: Sequence[str], log: Path, seconds: float) -> int | None:
    """Pytest's exit status, or None where time ran out."""
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "--tb=short", *arguments]
    with log.open("w") as file:
        try:
            return subprocess.run(
                command, timeout=seconds, cwd=TESTS.parent, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {seconds:.0f} s")
            return None
