"""Every code block of the structure loss's page runs, and its pictures can be drawn."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from doc_pages import DOCS, blocks, run

PAGE = "structure_loss.md"


@pytest.mark.core
def test_every_block_runs(capsys):
    chosen = blocks(PAGE)
    assert len(chosen) == 12
    run(PAGE, chosen)
    assert "loss of the heads:" in capsys.readouterr().out


@pytest.mark.core
def test_links_and_pictures_of_the_page_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS / PAGE).read_text())
    assert len(links) == 5
    assert [link for link in links if not (DOCS / link).is_file()] == []


@pytest.mark.slow
def test_figures_are_drawn_without_data_and_say_so(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(DOCS / "figures.py"), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
    subprocess.run(command, check=True, env=environment)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in (DOCS / "figures").iterdir())
    sys.path.append(str(DOCS))
    try:
        import figures
    finally:
        sys.path.remove(str(DOCS))
    assert figures.lesion("synthetic")[2].startswith("SYNTHETIC")
