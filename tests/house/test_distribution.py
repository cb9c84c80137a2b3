"""What pip calls this package, and the other library that has its import name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastclip
from fastclip import distribution
from fastclip.cli import main
from fastclip.report import report

ROOT = Path(__file__).parents[2]
in_checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata that the other library's install leaves."""
    info = tmp_path / "fastclip-9.8.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fastclip\nVersion: 9.8.7\nAuthor: X\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_the_report_names_another_library_in_the_same_folder(other: None) -> None:
    (line,) = (line for line in report().splitlines() if line.startswith("warning:"))
    assert "fastclip 9.8.7 is installed too, another library" in line
    assert "pip uninstall fastclip, then pip install --force-reinstall" in line
    assert line.endswith("fastclip-torch")


def test_an_older_install_of_this_package_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "fastclip-0.1.0.dist-info"
    info.mkdir()
    author = "Author: The fastclip authors"
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: fastclip\nVersion: 0.1.0\n{author}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert distribution.other_library().startswith("an older install of this package")


def test_the_command_says_so_where_the_other_library_took_the_name(
    other: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = ModuleType("fastclip")
    taken.__file__ = "/site/fastclip/__init__.py"
    monkeypatch.setitem(sys.modules, "fastclip", taken)
    assert main(["train"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "gives another library, at /site/fastclip/__init__.py: fastclip 9.8.7" in line


@in_checkout
def test_every_hint_names_this_distribution() -> None:
    """`pip install fastclip` would install somebody else's."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("pyproject.toml"), ROOT / "Makefile"]
    for folder in ("fastclip", "csrc", "tests", "bench", "docs", ".github"):
        files += [p for p in ROOT.glob(f"{folder}/**/*") if p.suffix in (".py", ".md", ".yml")]
    wrong = re.compile(
        r"(pip|uv) (install|add) [^\n]*\bfastclip(?!-torch|-build)[\[ '\"`]|fastclip\["
    )
    assert len(files) > 100
    found = [f"{p}: {m[0]}" for p in files for m in wrong.finditer(p.read_text(errors="replace"))]
    own = f"{Path(__file__)}: "
    assert [line for line in found if not line.startswith(own)] == []


@in_checkout
def test_one_version() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == distribution.NAME
    assert project["dynamic"] == ["version"]
    assert {"train", "report", "medical", "dev", "docs"} <= set(project["optional-dependencies"])
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == fastclip.__version__
