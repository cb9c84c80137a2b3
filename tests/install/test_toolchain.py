"""What setup.py makes of compilers, of the user's flags and of odd paths, without building."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")
CLANG = next(
    filter(None, map(shutil.which, ["clang++", *(f"clang++-{v}" for v in range(13, 23))])), ""
)
needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
needs_clang = pytest.mark.skipif(not CLANG, reason="needs clang")


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(ROOT / "csrc")
    for name in ("CXX", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "MAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NATIVE", "CUDA"):
        monkeypatch.delenv(f"FASTCLIP_{name}", raising=False)
    import toolchain

    return toolchain


def stand_in(folder: Path, *lines: str, status: int = 0) -> str:
    """A command that prints lines, as a compiler would list its macros."""
    command = folder / "a compiler"
    shown = "\n".join(lines)
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{shown}\nEND\nexit {status}\n")
    command.chmod(0o755)
    return f"'{command}'"


def macros(**values: object) -> list[str]:
    return [f"#define {name} {value}" for name, value in values.items()]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (macros(__GNUC__=8, __x86_64__=1), r"\(gcc 8\) is too old: fastclip needs gcc 9 or newer"),
        (macros(__GNUC__=4, __clang__=1, __clang_major__=7), "clang 13 or newer"),
        (macros(__GNUC__=4, __clang__=1, __INTEL_LLVM_COMPILER=1), r"neither \(__INTEL_LLVM"),
        (macros(_MSC_VER=1940), r"neither \(#define _MSC_VER"),
        (["tool 1.0"], r"neither \(tool 1.0\)"),
    ],
)
def test_a_compiler_that_cannot_be_used_is_named(toolchain, monkeypatch, tmp_path, lines, message):
    monkeypatch.setenv("CXX", stand_in(tmp_path, *lines))
    with pytest.raises(toolchain.CompileError, match=message) as error:
        toolchain.find_compiler()
    assert "a compiler" in str(error.value)
    assert "FASTCLIP_NATIVE=0 pip install ." in str(error.value)


@needs_clang
def test_clang_builds_it_as_gcc_does(toolchain, monkeypatch):
    monkeypatch.setenv("CXX", CLANG)
    found = toolchain.find_compiler()
    assert (found.command, found.kind) == ((CLANG,), "clang")


@needs_gcc
def test_a_compiler_with_a_launcher_before_it(toolchain, monkeypatch):
    monkeypatch.setenv("CXX", "env A=1 g++")
    found = toolchain.find_compiler()
    assert found.command == ("env", "A=1", "g++")
    assert found.kind == "gcc"


@needs_gcc
@pytest.mark.parametrize("level", ["v3", "v4"])
def test_levels_are_those_of_the_x86_64_psabi(toolchain, level):
    """Spelt out for compilers that do not know their names, they define the same macros."""
    compiler = toolchain.find_compiler()
    if not compiler.x86_64 or compiler.version < 11:
        pytest.skip("needs a g++ that knows -march=x86-64-v3")

    def defined(*flags: str) -> set[str]:
        command = ["g++", *flags, "-x", "c++", "-dM", "-E", "-"]
        return set(subprocess.check_output(command, text=True, input="").splitlines())

    assert defined(*compiler.levels()[level]) == defined(f"-march=x86-64-{level}")


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
@pytest.mark.parametrize("variable", ["CXXFLAGS", "CPPFLAGS"])
def test_flags_that_hide_nan_are_refused(toolchain, monkeypatch, flag, variable):
    monkeypatch.setenv(variable, f"-O2 {flag}")
    with pytest.raises(toolchain.CompileError, match=f"{flag} of CPPFLAGS or CXXFLAGS is refused"):
        toolchain.compile_flags()


def test_flags_are_split_as_a_shell_does(toolchain, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-O2 '-DNAME=\"two words\"'")
    assert toolchain.compile_flags() == ["-O2", '-DNAME="two words"']
    monkeypatch.setenv("CXXFLAGS", "-DX='")
    with pytest.raises(toolchain.CompileError, match=r"CXXFLAGS=.*No closing quotation"):
        toolchain.compile_flags()


@pytest.mark.parametrize(
    ("own", "variables", "expected"),
    [
        (None, {}, []),
        (3, {"MAX_JOBS": "5"}, ["-j3"]),
        (None, {"MAX_JOBS": "5", "MAKEFLAGS": " -j2"}, ["-j5"]),
        (None, {"MAKEFLAGS": " -j2 --jobserver-auth=3,4"}, ["-j2"]),
        (None, {"MAKEFLAGS": "n --job-name"}, []),
    ],
)
def test_jobs(toolchain, monkeypatch, own, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert toolchain.jobs(own) == expected


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_jobs_that_are_no_number(toolchain, monkeypatch, value):
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(toolchain.CompileError, match=f"MAX_JOBS must be .* got '{value}'"):
        toolchain.jobs(None)


@pytest.mark.parametrize("variable", ["FASTCLIP_CUDA", "FASTCLIP_NATIVE"])
def test_a_switch_is_0_or_1(toolchain, monkeypatch, variable):
    monkeypatch.setenv(variable, "false")
    with pytest.raises(toolchain.CompileError, match=f"{variable} must be 0 or 1.*'false'"):
        toolchain.switch(variable)


@needs_gcc
def test_own_flags_reach_compiler_and_linker(tmp_path):
    """Named in build.ninja, which a ninja that does nothing leaves behind."""
    pytest.importorskip("pybind11")
    (tmp_path / "ninja.py").write_text("")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", str(tmp_path / "t"),
         "--build-lib", str(tmp_path / "two words $x")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CXX": "g++", "FASTCLIP_CUDA": "0",
             "CXXFLAGS": "-DOWN='a $b'", "LDFLAGS": "-Wl,-z,now"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "t" / "native" / "build.ninja").read_text()
    compile_line, link_line = (line for line in text.splitlines() if line.startswith("  command"))
    assert "'-DOWN=a $$b'" in compile_line
    assert compile_line.index("-O3") < compile_line.index("$small") < compile_line.index("-DOWN")
    assert link_line.endswith("-Wl,-z,now")
    assert "two$ words$ $$x" in text
