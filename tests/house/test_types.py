"""The types that users see: `mypy --strict` in a file of theirs accepts every public call."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastclip

USER = Path(__file__).with_name("strict_user.py")
HOME = Path(fastclip.__file__).parents[1]


def check(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "user.py").write_text(text)
    # mypy finds installed packages by itself, and refuses their folder as a path.
    path = {} if HOME.name == "site-packages" else {"MYPYPATH": str(HOME)}
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(folder / "cache")]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, "user.py"],
        cwd=folder,
        env={**os.environ, **path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_public_name_is_called():
    tree = ast.parse(USER.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(fastclip.__all__) <= used


@pytest.mark.slow
def test_mypy_strict_accepts_every_public_call(tmp_path):
    pytest.importorskip("mypy")
    done = check(USER.read_text(), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = USER.read_text() + '\nfastclip.grad_norms(model, "two")\nmonitor.observe([1.0])\n'
    found = check(wrong, tmp_path)
    assert found.stdout.count("error:") >= 2, found.stdout
