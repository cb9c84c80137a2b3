"""The baseline kernels on processors that are not here: cross-compiled, and run by qemu."""

from __future__ import annotations

import platform
import re
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


FLAGS = ["-std=c++17", "-O2", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi", f"-I{CSRC}"]
FLAGS += ["-DFASTCLIP_X86_LEVELS=0", "-DFASTCLIP_ISA=baseline", "-static"]
PROGRAMS = {
    "norms and scaling": [HERE / "kernels_on.cpp", CSRC / "cpu" / "grad_norm" / "kernels.cpp"],
    "conversions": [HERE / "conversions_on.cpp"],
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("processor", [platform.machine(), *PROCESSORS])
def test_what_it_computes(processor, program, tmp_path):
    here = processor == platform.machine()
    compiler = "g++" if here else f"{processor}-linux-gnu-g++"
    emulator = f"qemu-{processor.replace('powerpc', 'ppc')}"
    for tool in (compiler,) if here else (compiler, emulator):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    run(compiler, *FLAGS, *PROGRAMS[program], "-o", tmp_path / "kernels")
    assert run(*(() if here else (emulator,)), tmp_path / "kernels") == ""


@pytest.mark.parametrize(
    ("conversion", "most"),
    [
        ("f32v run(half_t* p) { return load(p); }", 3),
        ("f32v run(bfloat_t* p) { return load(p); }", 4),
        ("f32v run(uint8_t* p) { return load(p); }", 5),
        ("void run(half_t* p, f32v x) { store(p, x); }", 3),
    ],
)
def test_aarch64_converts_in_a_few_instructions(conversion, most, tmp_path):
    """Without its own instructions GCC 12 takes 12 to 35."""
    compiler = "aarch64-linux-gnu-g++"
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    source = tmp_path / "conversion.cpp"
    lines = ["#include <cpu/vector/simd.h>", "using namespace fastclip::cpu;", conversion]
    lines.append("auto kept() { return run; }")  # its arguments' types have internal linkage
    source.write_text("\n".join([*lines, ""]))
    text = run(compiler, *FLAGS, "-S", source, "-o", "-")
    body = re.split(r"^\w*run\w*:$", text, flags=re.MULTILINE)[1].split(".cfi_endproc")[0]
    instructions = re.findall(r"^\t[a-z]\w*", body, re.MULTILINE)
    assert 0 < len(instructions) <= most, body


@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_kernel_compiles_for_it(processor, tmp_path):
    compiler = f"{processor}-linux-gnu-g++"
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    flags = ["-std=c++17", "-O1", "-Wno-psabi", f"-I{CSRC}", "-DFASTCLIP_X86_LEVELS=0"]
    for source in sorted(CSRC.glob("cpu/*/kernels.cpp")):
        out = tmp_path / f"{source.parent.name}.o"
        run(compiler, *flags, "-DFASTCLIP_ISA=baseline", "-fno-exceptions", "-c", source, "-o", out)
