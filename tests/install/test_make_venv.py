"""A virtual environment with pip, whatever the machine has to make one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "make_venv"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TOOL.exists(), reason="needs the sources"),
]


def make_venv(python: str, folder: Path, path: str = os.environ["PATH"]) -> tuple[int, str]:
    done = subprocess.run(
        [TOOL, python, folder],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stderr


def test_one_without_pip_is_healed(tmp_path):
    pytest.importorskip("ensurepip")
    folder = tmp_path / "two words"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    assert make_venv(sys.executable, folder) == (0, "")
    assert (folder / "bin" / "pip").exists()


def test_a_python_that_is_not_there(tmp_path):
    code, said = make_venv("python9.99", tmp_path / "env")
    assert code == 1
    assert "there is no python9.99 here" in said


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('case "$1" in --version) echo Python 3.8.1;; *) exit 1;; esac', "Python 3.8.1 is too old"),
        ('case "$1" in -c) exit 0;; *) exit 1;; esac', "apt-get install python3-venv"),
    ],
)
def test_a_python_that_can_make_none(tmp_path, script, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    code, said = make_venv(str(python), tmp_path / "env", path="/usr/bin:/bin")
    assert code == 1
    assert message in said
    assert not (tmp_path / "env").exists()
