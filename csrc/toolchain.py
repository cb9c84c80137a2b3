"""The compilers that setup.py builds with, what they are, and the user's own flags."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import CompileError

OLDEST = {"gcc": 9, "clang": 13, "Apple clang": 14}
# Macros of compilers that pass for gcc or clang and are neither.
UNKNOWN = ("__INTEL_COMPILER", "__INTEL_LLVM_COMPILER", "__NVCOMPILER", "__ibmxl__", "_CRAYC")
CUDA_OLDEST = (12, 1)  # of nvcc; kernels take 32 KB of parameters from here on

INSTEAD = """
Install g++ {gcc} or newer (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or
name yours in CXX, or install without native kernels, on the slower pure-torch references:

    FASTCLIP_NATIVE=0 pip install .
""".format(gcc=OLDEST["gcc"])
# What -march=x86-64-v3 and -v4 stand for: gcc knows those names from 11 on.
V3 = ["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt"]
V3 += ["sse3", "sse4.1", "sse4.2", "ssse3", "cx16", "sahf", "xsave"]
V4 = [*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
# Flags under which a compiler may take it that no NaN and no infinity exists.
UNSAFE = ("-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler, as it says itself what it is."""

    command: tuple[str, ...]  # with a launcher such as ccache before it
    kind: str  # "gcc", "clang" or "Apple clang"
    version: int
    x86_64: bool  # what it builds for

    def levels(self) -> dict[str, list[str]]:
        """The flags of each instruction-set level of what it builds for."""
        if not self.x86_64:
            return {"baseline": []}
        v3, v4 = ([f"-m{feature}" for feature in level] for level in (V3, V4))
        return {"baseline": [], "v3": v3, "v4": v4}

    def __str__(self) -> str:
        return f"{shlex.join(self.command)} ({self.kind} {self.version})"


def switch(variable: str, default: str = "") -> str:
    """ "0", "1" or the default, from the environment; anything else is an error."""
    value = os.environ.get(variable, "") or default
    if value not in ("", "0", "1"):
        raise CompileError(f"{variable} must be 0 or 1, or not set, got {value!r}")
    return value


def words(variable: str) -> list[str]:
    """The words of a variable of the environment, as a shell splits them."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise CompileError(f"{variable}={os.environ[variable]!r}: {error}") from error


def compile_flags() -> list[str]:
    """The user's own flags: CPPFLAGS and CXXFLAGS."""
    flags = words("CPPFLAGS") + words("CXXFLAGS")
    if found := [flag for flag in flags if flag in UNSAFE]:
        raise CompileError(
            f"{found[0]} of CPPFLAGS or CXXFLAGS is refused: under it NaN and infinite gradients go"
            " unseen"
        )
    return flags


def jobs(parallel: int | None) -> list[str]:
    """Ninja's -j: setup.py's own, else $MAX_JOBS, else that of the make which runs this."""
    if not parallel and (value := os.environ.get("MAX_JOBS")):
        if not value.isdecimal() or int(value) == 0:
            raise CompileError(f"MAX_JOBS must be a number of jobs from 1 on, got {value!r}")
        parallel = int(value)
    if not parallel and (found := re.search(r"(?:^| )-j *(\d+)", os.environ.get("MAKEFLAGS", ""))):
        parallel = int(found[1])
    return [f"-j{parallel}"] if parallel else []


def find_compiler() -> Compiler:
    """$CXX, else g++, else c++; refused by name where it cannot build the core.

    Raises:
        CompileError: it is not there, too old, or not known.
    """
    command = words("CXX") or [shutil.which("g++") or shutil.which("c++") or "g++"]
    found = _identify(command)
    oldest = OLDEST[found.kind]
    if found.version < oldest:
        problem = f"{found} is too old: fastclip needs {found.kind} {oldest} or newer"
        raise CompileError(f"{problem}.\n{INSTEAD}")
    return found


def _run(command: list[str], source: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=source, capture_output=True, text=True)


def _identify(command: list[str]) -> Compiler:
    """What a command is, by the macros that it defines."""
    shown = repr(shlex.join(command))
    try:
        done = _run([*command, "-x", "c++", "-dM", "-E", "-"])
    except OSError as error:
        problem = "was not found" if isinstance(error, FileNotFoundError) else f"fails: {error}"
        raise CompileError(
            f"fastclip needs a C++17 compiler to build its kernels, and {shown} {problem}.\n"
            f"{INSTEAD}"
        ) from error
    macros = dict(re.findall(r"^#define (\w+) (.+)$", done.stdout, re.MULTILINE))
    unknown = [name for name in UNKNOWN if name in macros]
    if done.returncode != 0 or "__GNUC__" not in macros or unknown:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = unknown or said[:1] or ["it names no version"]
        raise CompileError(
            f"fastclip is built with gcc or clang, and {shown} is neither ({reason[0]}).\n{INSTEAD}"
        )
    if "__clang__" in macros:
        kind = "Apple clang" if "__apple_build_version__" in macros else "clang"
        version = macros["__clang_major__"]
    else:
        kind, version = "gcc", macros["__GNUC__"]
    return Compiler(tuple(command), kind, int(version), "__x86_64__" in macros)


def find_nvcc(sanitized: bool) -> str | None:
    """The CUDA compiler, where the CUDA kernels are to be built."""
    wanted = switch("FASTCLIP_CUDA")
    if wanted == "0" or (not wanted and sanitized):
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    known = [str(Path(home) / "bin") for home in [*homes, "/usr/local/cuda"] if home]
    path = os.environ.get("PATH", os.defpath)
    command = shutil.which("nvcc", path=os.pathsep.join([*known[:-1], path]))
    command = command or shutil.which("nvcc", path=known[-1])
    problem = "nvcc was not found: set CUDA_HOME"
    if command is not None:
        found = re.search(r"release (\d+)\.(\d+)", _run([command, "--version"]).stdout)
        if found and (int(found[1]), int(found[2])) >= CUDA_OLDEST:
            return command
        problem = f"{command} is older than CUDA 12.1, or does not run"
    if wanted:
        raise CompileError(f"FASTCLIP_CUDA={wanted}, but {problem}")
    print(f"fastclip is built without CUDA kernels: {problem}")
    return None
