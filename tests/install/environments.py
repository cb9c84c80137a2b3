"""Builds and installs fastclip as strangers do: odd paths, users, masks and compilers.

Each line of the output is one environment: ok, FAULT with the reason, or skipped with what this
machine lacks. Compilations are without optimisation (CXXFLAGS=-O0), which is 10 times as fast.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800  # for what hangs: a build takes a minute and a half of one processor
# What a checkout has and an archive of it has not.
NOT_PACKED = (
    ".git",
    ".venv*",
    "build",
    "dist",
    "runs",
    "*.so",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
)
CLANGS = [*filter(shutil.which, (f"clang++-{v}" for v in range(13, 24)))] or ["clang++"]
# Signs of the shell and of ninja, and not ASCII. A ; is in the folder of each compiler: ninja
# builds there, but reads no list of headers, and a second time builds all of it.
ODD = "two  words a$b:c'd\"e&f läsion-病変"
SMOKE = """
import torch, fastclip
from fastclip import native, report
assert native.core is not None
p = torch.nn.Parameter(torch.zeros(2)); p.grad = torch.tensor([3.0, 4.0])
assert fastclip.clip_grad_norm_([p], 1.0).item() == 5.0
x = torch.zeros(1, 1, 40, 40, requires_grad=True)
fastclip.structure_loss(x, torch.ones_like(x)).backward()
assert x.grad.abs().sum().item() > 0
print(fastclip.__file__)
"""


class Fault(Exception):
    """An environment in which fastclip does not do what it should."""


class Skip(Exception):
    """What this machine lacks for an environment."""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change a build, and with `changes`."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("FASTCLIP_", "PIP_", "PYTHON"))
    }
    for name in ("CXX", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "MAKEFLAGS", "MAX_JOBS"):
        kept.pop(name, None)
    return {**kept, "CXXFLAGS": "-O0", "FASTCLIP_CUDA": "0", "FASTCLIP_NATIVE": "1", **changes}


def run(command: list[object], cwd: Path, prefix: tuple[str, ...] = (), **changes: str) -> str:
    """The output of a command that must succeed, with no standard input to wait on."""
    done = subprocess.run(
        [*prefix, *map(str, command)],
        cwd=cwd,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
    )
    if done.returncode != 0:
        raise Fault(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}")
    return done.stdout


def copy_of_sources(folder: Path) -> Path:
    """The tree as an archive of it would unpack: no .git, nothing that was built."""
    ignored = shutil.ignore_patterns(*NOT_PACKED)
    shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True)
    return folder


def make_wheel(sources: Path, out: Path, prefix: tuple[str, ...] = (), **changes: str) -> Path:
    """A wheel by pip, from the sources as they lie."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run([*pip, out, "."], sources, prefix, **changes)
    wheels = list(out.glob("fastclip_torch-*.whl"))
    if len(wheels) != 1:
        raise Fault(f"pip left {[path.name for path in out.iterdir()]}")
    return wheels[0]


def use(wheel: Path, folder: Path, prefix: tuple[str, ...] = (), **changes: str) -> None:
    """Installs a wheel into a folder of its own, and clips and trains with it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    run([*pip, wheel], wheel.parent, prefix)
    at = run([sys.executable, "-c", SMOKE], folder, prefix, PYTHONPATH=str(folder), **changes)
    if not at.strip().endswith(str(folder / "fastclip" / "__init__.py")):
        raise Fault(f"another fastclip was imported: {at}")


def odd_paths_and_masks(work: Path) -> None:
    """A source distribution, made, built and tested where paths are odd and new files private.

    Once more in a locale without UTF-8, one file of it: ninja compiles all that its command lines
    have changed for. By setup.py, since pip itself fails at such a path in such a locale.
    """
    folder = work / ODD
    folder.mkdir()
    before = os.umask(0o077)
    try:
        packed = pack(copy_of_sources(folder / "src"), folder / "dist")
        shutil.unpack_archive(packed, folder / "unpacked")
        (unpacked,) = (folder / "unpacked").iterdir()
        wheel = make_wheel(unpacked, work / "out")
    finally:
        os.umask(before)
    use(wheel, work / "site")
    shut = [p for p in (work / "site" / "fastclip").rglob("*") if not p.stat().st_mode & 0o044]
    if shut:
        raise Fault(f"others cannot read {shut[:3]}")
    test_of(unpacked, work / "site")

    (unpacked / "csrc/cpu/vector/isa.cpp").touch()
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    again = work / "again"
    run([sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", again], unpacked, **plain)
    use(next(again.glob("*.whl")), work / "site of again", **plain)


def pack(sources: Path, out: Path) -> Path:
    """The source distribution."""
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", out], sources)
    (packed,) = out.glob("fastclip_torch-*.tar.gz")
    return packed


def test_of(unpacked: Path, site: Path) -> None:
    """A source distribution holds its tests, and they run on what is installed."""
    tests = unpacked / "tests"
    for needed in ("conftest.py", "install/run", "clipping/test_clip.py", "cuda_on_host"):
        if not (tests / needed).exists():
            raise Fault(f"the source distribution has no tests/{needed}")
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    few = [tests / "clipping/test_step.py", "-k", "adamw"]
    run([*pytest, "--rootdir", tests, *few], tests, PYTHONPATH=str(site))


def nobody(work: Path) -> None:
    """A user who owns nothing, with no home, and sources that only others may write."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        raise Skip("needs root and setpriv")
    reads = "+dac_read_search"  # this Python may lie in a folder of root's
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={reads}")
    prefix += (f"--ambient-caps={reads}", f"--bounding-set={reads}")
    sources = copy_of_sources(work / "src")
    own = work / "own"
    own.mkdir()
    os.chown(own, 65534, 65534)
    work.chmod(0o755)
    use(make_wheel(sources, own / "out", prefix, HOME="/nonexistent"), own / "site", prefix)
    if list(sources.glob("*.egg-info")) or (sources / "build").exists():
        raise Fault("the source tree was written to")


def zip_and_lint(work: Path) -> None:
    """From an archive without .git, the linters' file list is that of the folders, and ends."""
    copy_of_sources(work / "packed")
    shutil.make_archive(str(work / "fastclip"), "zip", work / "packed")
    with zipfile.ZipFile(work / "fastclip.zip") as archive:
        archive.extractall(work / "unpacked")
    if not shutil.which("make"):
        raise Skip("needs make")
    listed = run(["make", "--dry-run", "lint", "VENV=env"], work / "unpacked")
    (line,) = [line for line in listed.splitlines() if "clang-format" in line]
    if "csrc/cpu/grad_norm/kernels.cpp" not in line or "</dev/null" not in line:
        raise Fault(line)


def with_compiler(command: str, *, refused: str = "", **changes: str) -> Callable[[Path], None]:
    """Builds with this compiler, or is refused with this text."""

    def check(work: Path) -> None:
        if not shutil.which(command.split()[0]):
            raise Skip(f"{command} is not installed")
        sources = copy_of_sources(work / "a;b" / "src")  # pip splits a wheel's name there
        try:
            wheel = make_wheel(sources, work / "out", CXX=command, MAX_JOBS="2", **changes)
        except Fault as fault:
            if refused and refused in str(fault):
                return
            raise
        if refused:
            raise Fault(f"was not refused: {refused}")
        use(wheel, work / "site")

    return check


ENVIRONMENTS: dict[str, Callable[[Path], None]] = {
    "an archive without .git": zip_and_lint,
    "a command that is no compiler": with_compiler("true", refused="is neither"),
    "odd paths, umask 077, from a source distribution, without UTF-8": odd_paths_and_masks,
    "nobody, a read-only source tree, no home": nobody,
    **{f"g++-{v}": with_compiler(f"g++-{v}") for v in range(9, 16)},
    **{name: with_compiler(name) for name in CLANGS},
}
QUICK = list(ENVIRONMENTS)[:3]  # one build


def chosen(arguments: list[str]) -> list[str]:
    """Names of environments: all of them, those of --quick, or those named."""
    wanted = QUICK if arguments == ["--quick"] else arguments or list(ENVIRONMENTS)
    if unknown := [name for name in wanted if name not in ENVIRONMENTS]:
        sys.exit(f"tests/install/run: no environment {unknown[0]!r}: {'; '.join(ENVIRONMENTS)}")
    return wanted


def main() -> int:
    faults = skipped = 0
    names = chosen(sys.argv[1:])
    for name in names:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fastclip-install-") as work:
            try:
                ENVIRONMENTS[name](Path(work))
                said = "ok"
            except Skip as skip:
                said, skipped = f"skipped: {skip}", skipped + 1
            except (Fault, OSError, ValueError, subprocess.TimeoutExpired) as fault:
                said, faults = f"FAULT {fault}", faults + 1
        print(f"{name}: {said} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{len(names) - faults - skipped} passed, {faults} failed, {skipped} skipped")
    return min(faults, 1)


if __name__ == "__main__":
    if not sysconfig.get_config_var("EXT_SUFFIX"):
        sys.exit("tests/install/run: this Python builds no extensions")
    sys.exit(main())
