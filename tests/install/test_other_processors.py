"""The baseline kernels on processors that are not here: cross-compiled, and run by qemu."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
PROCESSORS = ("aarch64", "riscv64", "powerpc64le")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CSRC.is_dir(), reason="needs the sources"),
]


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command[0]}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("processor", [platform.machine(), *PROCESSORS])
def test_norms_and_scaling(processor, tmp_path):
    here = processor == platform.machine()
    compiler = "g++" if here else f"{processor}-linux-gnu-g++"
    emulator = f"qemu-{processor.replace('powerpc', 'ppc')}"
    for tool in (compiler,) if here else (compiler, emulator):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    flags = [
        "-std=c++17",
        "-O2",
        "-fno-math-errno",
        "-ffp-contract=fast",
        "-Wno-psabi",
        f"-I{CSRC}",
    ]
    flags += ["-DFASTCLIP_X86_LEVELS=0", "-DFASTCLIP_ISA=baseline", "-static"]
    sources = [HERE / "kernels_on.cpp", CSRC / "cpu" / "grad_norm" / "kernels.cpp"]
    run(compiler, *flags, *sources, "-o", tmp_path / "kernels")
    assert run(*(() if here else (emulator,)), tmp_path / "kernels") == ""


@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_kernel_compiles_for_it(processor, tmp_path):
    compiler = f"{processor}-linux-gnu-g++"
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    flags = ["-std=c++17", "-O1", "-Wno-psabi", f"-I{CSRC}", "-DFASTCLIP_X86_LEVELS=0"]
    for source in sorted(CSRC.glob("cpu/*/kernels.cpp")):
        out = tmp_path / f"{source.parent.name}.o"
        run(compiler, *flags, "-DFASTCLIP_ISA=baseline", "-fno-exceptions", "-c", source, "-o", out)
