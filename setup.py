"""Builds fastclip._native from csrc/ with ninja: pybind11 and a C++17 compiler, no torch.

Honoured: CXX, CPPFLAGS, CXXFLAGS, LDFLAGS; `build_ext -j`, MAX_JOBS, and -j in MAKEFLAGS.
FASTCLIP_NATIVE=0 leaves the native core out; fastclip then runs on its pure-torch references.
FASTCLIP_CUDA=0 leaves the CUDA kernels out, =1 insists on them; else they are built where nvcc is.
FASTCLIP_SANITIZE=address,undefined (or thread) builds the CPU kernels under those sanitizers.
"""

import atexit
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
sys.path.insert(0, str(CSRC))  # pip runs this file without the folder on the path

import toolchain  # noqa: E402

CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
FAILED = (
    "building fastclip's native core failed: see the messages above, or"
    " install without the CUDA kernels (FASTCLIP_CUDA=0 pip install .)"
    " or without all of it: FASTCLIP_NATIVE=0 pip install ."
)


def quoted(command: Iterable[object]) -> str:
    """A command line for the shell, as ninja has to read it."""
    return shlex.join(str(word) for word in command).replace("$", "$$")


def escaped(path: object) -> str:
    """A path in a build line of ninja's, which quotes it for the shell where a command names it."""
    text = str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
    if "\n" in text:
        raise CompileError(f"fastclip cannot be built under {str(path)!r}: a line break is in it")
    return text


def rule(name: str, command: str) -> list[str]:
    """A ninja rule whose compiler lists the headers that it read."""
    return [
        f"rule {name}",
        "  description = $out",
        f"  command = {command} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def cuda_command(nvcc: str, host: str) -> str:
    """nvcc's command: machine code of every architecture that it knows, and PTX of the lowest.

    Drivers make code of PTX for every later card: those between and after the ones named, too.
    """
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    archs = [arch for arch in CUDA_ARCHS if f"sm_{arch}" in listed.split()]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[0]},code=compute_{archs[0]}")
    flags = [
        "-std=c++17",
        "-O3",
        "--threads",
        "0",  # as many as there are processors: a pass for each architecture
        "-ccbin",
        host,
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
    ]
    return quoted([nvcc, f"-I{CSRC}", *flags, *targets])


def compile_command(cxx: toolchain.Compiler, cuda: bool, guards: list[str]) -> str:
    """The command for a .cpp file: ninja's $small, and behind it the user's own flags."""
    import pybind11

    sanitized = bool(guards)
    quiet = ["psabi", "unknown-pragmas", "unused-function", "ignored-attributes"]
    if cxx.kind == "gcc":
        quiet += ["maybe-uninitialized", "uninitialized"]  # GCC 12's own headers, at v4
    flags = ["-std=c++17", "-O1" if sanitized else "-O3", "-fPIC", "-fvisibility=hidden"]
    flags += ["-pthread"]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    flags += ["-Wall", "-Wextra", "-Werror=return-type", *(f"-Wno-{name}" for name in quiet)]
    includes = [
        f"-I{CSRC}",
        "-isystem",
        sysconfig.get_path("include"),
        "-isystem",
        pybind11.get_include(),
    ]
    defines = [f"-DFASTCLIP_X86_LEVELS={int(cxx.x86_64)}", f"-DFASTCLIP_CUDA={int(cuda)}"]
    command = quoted([*cxx.command, *flags, *includes, *defines, *guards])
    return f"{command} $small {quoted(toolchain.compile_flags())}"


def link_command(cxx: toolchain.Compiler, nvcc: str | None, guards: list[str]) -> str:
    """The command that makes the shared library, the user's own flags last."""
    host = ["-pthread", *(guards or ["-s"])]
    if sys.platform == "darwin":
        host = [*guards, "-undefined", "dynamic_lookup"]
    user = toolchain.words("LDFLAGS")
    if sys.platform.startswith("linux"):
        user = ["-ldl", *user]  # glibc has had dlsym in a library of its own until 2.34
    if nvcc is None:
        return f"{quoted([*cxx.command, '-shared', *host])} $in -o $out {quoted(user)}"
    # nvcc knows where its static runtime lies. It splits a list at commas that no \ stands before.
    passed = [word for flag in [*host, *user] for word in ("-Xcompiler", flag.replace(",", r"\,"))]
    command = [nvcc, "-shared", "-cudart", "static", "-ccbin", cxx.command[-1], *passed]
    return f"{quoted(command)} $in -o $out"


def ninja_file(output: Path) -> str:
    """build.ninja: every source once, the CPU kernels once per instruction-set level."""
    cxx = toolchain.find_compiler()
    sanitize = os.environ.get("FASTCLIP_SANITIZE", "")
    nvcc = toolchain.find_nvcc(bool(sanitize))
    guards = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g"] if sanitize else []
    link = link_command(cxx, nvcc, guards)
    lines = [*rule("compile", f"{compile_command(cxx, nvcc is not None, guards)} $level")]
    lines += ["rule link", "  description = $out", f"  command = {link}"]
    if nvcc is not None:
        lines += rule("compile_cuda", cuda_command(nvcc, cxx.command[-1]))
    objects = []
    for source in sorted(CSRC.glob("**/*.cpp")):
        per_level = source.match("cpu/*/kernels.cpp")
        stem = source.relative_to(ROOT).with_suffix("")
        for name, level in cxx.levels().items() if per_level else [("", [])]:
            objects.append(f"{stem}{'.' + name if name else ''}.o")
            lines.append(f"build {objects[-1]}: compile {escaped(source)}")
            if per_level:
                lines.append(
                    f"  level = {quoted([*level, f'-DFASTCLIP_ISA={name}', '-fno-exceptions'])}"
                )
            if per_level and not level and cxx.x86_64:
                # Processors without AVX2 are of before 2013, mostly. Their loss takes 5 % longer
                # so, and the wheel is a twentieth smaller.
                lines.append("  small = -Os")
    for source in sorted(CSRC.glob("cuda/*.cu")) if nvcc else []:
        objects.append(f"{source.stem}.cuda.o")
        lines.append(f"build {objects[-1]}: compile_cuda {escaped(source)}")
    lines.append(f"build {escaped(output)}: link {' '.join(objects)}")
    return "\n".join([*lines, f"default {escaped(output)}", ""])


class NinjaBuild(build_ext):
    """Replaces setuptools' one-file-at-a-time compilation."""

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.build_temp).resolve() / "native"
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_bytes(os.fsencode(ninja_file(output)))
        command = [sys.executable, "-m", "ninja", *toolchain.jobs(self.parallel), "-C", str(folder)]
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise CompileError(FAILED) from error


def folders() -> dict[str, dict[str, str]]:
    """Options that keep setuptools out of a source tree that cannot be written."""
    if os.access(ROOT, os.W_OK):
        return {}
    scratch = tempfile.mkdtemp(prefix="fastclip-build-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return {"egg_info": {"egg_base": scratch}, "build": {"build_base": scratch}}


def build_in_place() -> None:
    """Builds the core into fastclip/ without reading pyproject.toml, for any setuptools."""
    from setuptools.dist import Distribution

    distribution = Distribution(
        {"name": "fastclip", "ext_modules": [Extension("fastclip._native", [])]}
    )
    command = NinjaBuild(distribution)
    command.inplace = True
    command.ensure_finalized()
    command.run()


# Listed so that a source distribution holds them; NinjaBuild finds them by itself.
SUFFIXES = (".h", ".cpp", ".cu", ".py")
FILES = sorted(str(p.relative_to(ROOT)) for p in CSRC.glob("**/*.*") if p.suffix in SUFFIXES)
NATIVE = toolchain.switch("FASTCLIP_NATIVE", "1") != "0"

if __name__ == "__main__":
    setup(
        ext_modules=[Extension("fastclip._native", sources=FILES)] if NATIVE else [],
        cmdclass={"build_ext": NinjaBuild},
        options=folders(),
    )
