"""Builds fastclip._native from csrc/ with ninja: pybind11 and a C++17 compiler, no torch.

FASTCLIP_NATIVE=0 leaves the native core out; fastclip then runs on its pure-torch references.
FASTCLIP_CUDA=0 leaves the CUDA kernels out, =1 insists on them; else they are built where nvcc is.
FASTCLIP_SANITIZE=address,undefined (or thread) builds the CPU kernels under those sanitizers;
thread with tests/sanitize in libgomp's place.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path(__file__).parent.resolve() / "csrc"
SANITIZE = CSRC.parent / "tests" / "sanitize"
NATIVE = os.environ.get("FASTCLIP_NATIVE", "1") != "0"
X86_LEVELS = {
    "baseline": "",
    "v3": "-march=x86-64-v3",
    "v4": "-march=x86-64-v4 -Wno-maybe-uninitialized -Wno-uninitialized",  # GCC 12's own headers
}

NO_COMPILER = """
fastclip needs a C++17 compiler to build its kernels, and {compiler!r} {problem}.
Install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or name yours in
CXX, or install without native kernels, on the slower pure-torch references:

    FASTCLIP_NATIVE=0 pip install .
"""
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
CUDA_OLDEST = (12, 1)  # of nvcc; kernels take 32 KB of parameters from here on


def compiler() -> str:
    """The C++ compiler: $CXX, else g++, else c++."""
    command = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
    try:
        subprocess.run([*command.split(), "--version"], capture_output=True, check=True)
    except FileNotFoundError as error:
        raise CompileError(NO_COMPILER.format(compiler=command, problem="was not found")) from error
    except subprocess.CalledProcessError as error:
        raise CompileError(NO_COMPILER.format(compiler=command, problem="does not run")) from error
    return command


def nvcc() -> str | None:
    """The CUDA compiler, where the CUDA kernels are to be built."""
    wanted = os.environ.get("FASTCLIP_CUDA", "")
    if wanted == "0" or (not wanted and os.environ.get("FASTCLIP_SANITIZE")):
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    known = [str(Path(home) / "bin") for home in [*homes, "/usr/local/cuda"] if home]
    command = shutil.which("nvcc", path=os.pathsep.join([*known[:-1], os.environ["PATH"]]))
    command = command or shutil.which("nvcc", path=known[-1])
    problem = "nvcc was not found: set CUDA_HOME"
    if command is not None:
        text = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"release (\d+)\.(\d+)", text)
        if found and (int(found[1]), int(found[2])) >= CUDA_OLDEST:
            return command
        problem = f"{command} is older than CUDA 12.1, or does not run"
    if wanted:
        raise CompileError(f"FASTCLIP_CUDA={wanted}, but {problem}")
    print(f"fastclip is built without CUDA kernels: {problem}")
    return None


def cuda_rule(command: str) -> list[str]:
    """The ninja rule for .cu files: machine code of every architecture nvcc knows, and PTX."""
    listed = subprocess.run([command, "--list-gpu-code"], capture_output=True, text=True).stdout
    archs = [arch for arch in CUDA_ARCHS if f"sm_{arch}" in listed.split()]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    flags = "-std=c++17 -O3 --threads 2 -ccbin $host_cxx -Xcompiler -fPIC,-fvisibility=hidden"
    return [
        "rule compile_cuda",
        "  description = $out",
        f"  command = {command} -I{CSRC} {flags} {' '.join(targets)} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def ninja_file(output: Path) -> str:
    """build.ninja: every source once, the CPU kernels once per instruction-set level."""
    cxx = compiler()
    import pybind11

    cuda = nvcc()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    levels = X86_LEVELS if x86 else {"baseline": ""}
    sanitize = os.environ.get("FASTCLIP_SANITIZE", "")
    guards = f"-fsanitize={sanitize} -fno-omit-frame-pointer -g" if sanitize else ""
    stand_ins = sorted(SANITIZE.glob("*.cpp")) if sanitize == "thread" else []
    flags = " ".join(
        [
            f"-std=c++17 {'-O1' if sanitize else '-O3'} -fPIC -fopenmp -fvisibility=hidden",
            "-Wall -Wextra -Werror=return-type",
            "-fno-math-errno -fno-trapping-math -ffp-contract=fast -Wno-psabi",
            "-Wno-unknown-pragmas -Wno-unused-function -Wno-ignored-attributes",
            f"-I{CSRC} -isystem {sysconfig.get_path('include')}",
            f"-isystem {pybind11.get_include()}",
            f"-DFASTCLIP_X86_LEVELS={int(x86)} -DFASTCLIP_CUDA={int(cuda is not None)}",
            guards,
        ]
    )
    link = f"$cxx -shared {'' if stand_ins else '-fopenmp'} {guards or '-s'} $in -o $out"
    if cuda is not None:  # nvcc knows where its static runtime lies
        host_flags = ",".join(["-fopenmp", *(guards.split() or ["-s"])])
        link = f"{cuda} -shared -cudart static -ccbin $host_cxx -Xcompiler {host_flags}"
        link += " $in -o $out"
    lines = [
        f"cxx = {cxx}",
        f"host_cxx = {cxx.split()[-1]}",  # without a launcher such as ccache
        f"flags = {flags}",
        "rule compile",
        "  description = $out",
        "  command = $cxx $flags $level -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  description = $out",
        f"  command = {link}",
        *(cuda_rule(cuda) if cuda else []),
    ]
    objects = []
    for source in [*sorted(CSRC.glob("**/*.cpp")), *stand_ins]:
        per_level = source.match("cpu/*/kernels.cpp")
        stem = source.relative_to(CSRC.parent).with_suffix("")
        for name, level in levels.items() if per_level else [("", "")]:
            objects.append(f"{stem}{'.' + name if name else ''}.o")
            lines.append(f"build {objects[-1]}: compile {source}")
            if per_level:
                lines.append(f"  level = {level} -DFASTCLIP_ISA={name} -fno-exceptions")
    for source in sorted(CSRC.glob("cuda/*.cu")) if cuda else []:
        objects.append(f"{source.stem}.cuda.o")
        lines.append(f"build {objects[-1]}: compile_cuda {source}")
    lines.append(f"build {output}: link {' '.join(objects)}")
    return "\n".join([*lines, f"default {output}", ""])


class NinjaBuild(build_ext):
    """Replaces setuptools' one-file-at-a-time compilation."""

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.build_temp).resolve() / "native"
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(output))
        try:
            subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder)], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(
                "building fastclip's native core failed: see the messages above, or"
                " install without the CUDA kernels (FASTCLIP_CUDA=0 pip install .)"
                " or without all of it: FASTCLIP_NATIVE=0 pip install ."
            ) from error


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
FILES = sorted(str(path.relative_to(CSRC.parent)) for path in CSRC.glob("**/*.*"))

if __name__ == "__main__":
    setup(
        ext_modules=[Extension("fastclip._native", sources=FILES)] if NATIVE else [],
        cmdclass={"build_ext": NinjaBuild},
    )
