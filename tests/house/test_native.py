"""A core that cannot be used is told of once, and is an error where it was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastclip

PACKAGE = Path(fastclip.__file__).parent
pytestmark = pytest.mark.core
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
USE = """
import sys, warnings
# An editable install would find the binary of its own checkout.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastclip, torch
    norm = fastclip.get_total_norm([torch.tensor([3.0, 4.0])]).item()
    import fastclip.report; fastclip.report.report()
ours = [w for w in caught if "fastclip" in str(w.message)]
print(norm, *(f"{w.category.__name__}: {w.message}" for w in ours), sep="\\n")
"""


def package_without_binary(folder: Path) -> Path:
    """A copy of the package by links."""
    copy = folder / "fastclip"
    copy.mkdir()
    for item in PACKAGE.iterdir():
        if not item.name.startswith("_native.") or item.suffix == ".pyi":
            (copy / item.name).symlink_to(item)
    (copy / "native.py").unlink()  # the file says where it looks for the binary
    (copy / "native.py").write_text((PACKAGE / "native.py").read_text())
    return copy


def python(folder: Path, code: str = USE, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTCLIP_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
    )


CASES = [
    ({}, "this install has no native core: none was built in"),
    ({f"_native{SUFFIX}": b"\x7fELF, and no more"}, "the binary does not load ("),
    ({"_native.cpython-39-pdp11.so": b""}, "_native.cpython-39-pdp11.so in"),
    ({"_native.py": b"raise ImportError('GLIBC_9.9 not found')"}, "load (GLIBC_9.9 not found)"),
    (
        {"_native.py": b"def bind_torch(*a): raise RuntimeError('torch is too old')"},
        "torch is too old",
    ),
    ({"_native.py": b""}, "the binary is of another version than these files"),
]


@pytest.mark.parametrize(("files", "reason"), CASES, ids=[reason[:20] for _, reason in CASES])
def test_a_core_that_cannot_be_used_warns_once(tmp_path, files, reason):
    package = package_without_binary(tmp_path)
    for name, content in files.items():
        (package / name).write_bytes(content)
    done = python(tmp_path)
    assert done.returncode == 0, done.stderr
    norm, *warnings = done.stdout.splitlines()
    assert norm == "5.0"
    (warning,) = warnings
    assert warning.startswith("RuntimeWarning: fastclip runs without its native core, slower: ")
    assert reason in warning
    assert "pip install --force-reinstall" in warning
    assert "FASTCLIP_NATIVE=0" in warning


def test_python_started_among_the_sources_says_where_the_installed_core_is(tmp_path):
    package_without_binary(tmp_path)
    (tmp_path / "csrc").mkdir()
    (warning,) = python(tmp_path).stdout.splitlines()[1:]
    assert "which are the sources: from another folder Python finds what pip installed" in warning


def test_a_core_that_was_asked_for_is_an_error_where_it_is_missing(tmp_path):
    package_without_binary(tmp_path)
    done = python(tmp_path, FASTCLIP_NATIVE="1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: FASTCLIP_NATIVE=1, but fastclip's native core cannot be")
    assert "none was built in" in last
    assert "pip install --force-reinstall" in last


def test_a_core_that_was_not_wanted_is_no_warning(tmp_path):
    package_without_binary(tmp_path)
    done = python(tmp_path, FASTCLIP_NATIVE="0")
    assert done.stdout.split() == ["5.0"], done.stderr


@pytest.mark.parametrize(("name", "value"), [("NATIVE", "false"), ("ISA", "avx2")])
def test_a_switch_that_is_not_known_is_an_error(tmp_path, name, value):
    done = python(PACKAGE.parent, "import fastclip", **{f"FASTCLIP_{name}": value})
    assert done.returncode == 1
    assert f"the environment has FASTCLIP_{name}='{value}': set it to" in done.stderr
