"""The code in docs/norms.md runs as it stands."""

import csv

import pytest
from doc_pages import DOCS, blocks, run

from fastclip.norms.monitor.record import COLUMNS

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("norms.md", [block for block in blocks("norms.md") if not block[1]])
    with open("logs/norms.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_blocks_for_trainers_run(package):
    pytest.importorskip(package)
    found = [block for block in blocks("norms.md") if block[1] == package]
    assert found
    run("norms.md", found)


def test_the_page_names_every_column():
    text = (DOCS / "norms.md").read_text()
    assert [name for name in COLUMNS[1:] if f"| `{name}` |" not in text] == []
