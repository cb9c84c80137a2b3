"""The build and the install: what is in the binary, what happens without a compiler or a core."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastclip
from fastclip import native

ROOT = Path(__file__).parents[2]
in_checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")
has_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


def python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.core
def test_without_the_core_everything_runs_on_the_references_and_says_so():
    code = """
import torch, fastclip
from fastclip.report import report
p = torch.nn.Parameter(torch.zeros(2)); p.grad = torch.tensor([3.0, 4.0])
print(fastclip.clip_grad_norm_([p], 1.0).item())
x = torch.zeros(1, 1, 8, 8, requires_grad=True)
fastclip.structure_loss(x, torch.ones_like(x)).backward()
print(x.grad.norm().item() > 0)
print(report())
"""
    out = python(code, FASTCLIP_NATIVE="0")
    assert out.startswith("5.0\nTrue\n")
    for op in ("clip_value", "grad_norm", "structure_loss", "unit_clip"):
        assert re.search(rf"{op} +cpu .*fallback: FASTCLIP_NATIVE=0 is set", out)


@pytest.mark.core
@pytest.mark.skipif(native.core is None, reason="no native core")
def test_the_report_names_the_core():
    from fastclip.report import report

    assert re.search(r"grad_norm +cpu +native \((baseline|v3|v4)\)\n", report())
    assert fastclip.__version__ in report()


@pytest.mark.slow  # and alone on the machine
@pytest.mark.core
def test_import_takes_a_25th_of_torchs_at_most(tmp_path):
    """Of the shortest of each: a slow machine is slow at both."""
    code = """
import time
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
import fastclip
times.append(time.perf_counter())
print(times[1] - times[0], times[2] - times[1])
"""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    runs = [tuple(map(float, python(code, **compiled).split())) for _ in range(5)]
    torchs, ours = map(min, zip(*runs, strict=True))
    assert ours < torchs / 25


@pytest.mark.core
def test_import_needs_torch_and_nothing_else():
    code = """
import sys, torch
before = set(sys.modules)
import fastclip
print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}
             - set(sys.stdlib_module_names)))
"""
    assert python(code).strip() == "['fastclip']"


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", "build", "--build-base", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@in_checkout
def test_no_compiler_gives_a_message_that_says_what_to_do(tmp_path):
    result = build(tmp_path, CXX="no-such-compiler")
    assert result.returncode != 0
    assert "'no-such-compiler' was not found" in result.stderr
    assert "FASTCLIP_NATIVE=0 pip install ." in result.stderr


@in_checkout
def test_a_pure_python_build_needs_no_compiler(tmp_path):
    result = build(tmp_path, CXX="no-such-compiler", FASTCLIP_NATIVE="0")
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("**/fastclip/clipping/clip.py"))
    assert not list(tmp_path.glob("**/*.so"))


@pytest.mark.slow
@in_checkout
@has_compiler
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_levels_define_nothing_outside_their_namespace():
    """Else the linker could hand AVX-512 code to a CPU without it: csrc/cpu/vector/isa.h."""
    folder = ROOT / "build"  # where most of it has been compiled already
    result = build(folder)
    assert result.returncode == 0, result.stderr
    objects = list(folder.glob("temp*/**/cpu/*/kernels.*.o"))
    assert objects
    for path in objects:
        level = path.name.split(".")[-2]
        listed = subprocess.run(
            ["nm", "-C", "--defined-only", "--extern-only", path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for line in filter(None, listed.splitlines()):
            assert f" fastclip::cpu::{level}::" in line, f"{path.name}: {line}"


@in_checkout
@has_compiler
def test_no_march_native_and_no_torch_header():
    sources = [path for path in ROOT.glob("csrc/**/*.*") if path.suffix != ".pyc"]
    sources.append(ROOT / "setup.py")
    for source in sources:
        text = source.read_text()
        assert "march=native" not in text
        assert not re.search(r"#include [<\"](torch|ATen|c10)/", text), source
