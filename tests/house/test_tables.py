"""README and docs say what the committed rows say; a loss is found by ratio or by count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastclip.benchmark")

import blocks
import check
import instructions
import tables

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "bench" / "results").is_dir(), reason="needs the rows of the repository"
)


def test_pages_have_not_drifted():
    assert tables.drifted() == [], "run: make tables"


def test_the_readme_has_its_table():
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- rows headline -->") == 1
    assert text.count("<!-- rows ") == text.count("<!-- end rows -->")


@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_every_block_can_be_made(name):
    text = tables.written(f"before\n<!-- rows {name} -->\nold\n<!-- end rows -->\nafter\n")
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end rows -->\nafter\n")
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) <= 1


def test_a_changed_figure_is_found(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text(tables.written("<!-- rows accuracy -->\n<!-- end rows -->\n"))
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.drifted() == []
    assert "e-0" in page.read_text()
    page.write_text(page.read_text().replace("e-0", "e-1", 1))
    assert len(tables.drifted()) == 1
    assert tables.drifted()[0].startswith("README.md:")


def test_an_unknown_block_is_an_error():
    with pytest.raises(LookupError, match="no rows are named 'nothing'"):
        tables.written("<!-- rows nothing -->\n<!-- end rows -->\n")


@pytest.mark.parametrize(("ratio", "lost"), [(8.1, 0), (7.9, 1), (12.0, 0)])
def test_a_ratio_that_fell_by_a_fifth_is_lost(ratio, lost):
    key = ("clip_cpu", "a processor", "2", "clip", "a case", "float32", "fastclip")
    assert len(check.losses({key: 10.0}, {key: ratio})) == lost
    assert check.losses({key: 10.0}, {}) == {}


def test_the_ratios_compared_are_fastclips():
    found = check.speedups(check.measure.COMMITTED)
    assert len(found) > 30
    assert all(key[-1].startswith("fastclip") for key in found)


def test_ratios_of_another_processor_are_not_compared(monkeypatch, capsys):
    """And where there are no others, that is said before anything is measured."""
    key = ("clip_cpu", "a processor of nobody's", "2", "clip", "a case", "float32", "fastclip")
    assert check.losses({key: 10.0}, {(key[0], "this one", *key[2:]): 1.0}) == {}
    monkeypatch.setattr(check, "speedups", lambda folder: {key: 10.0})
    monkeypatch.setattr(check, "run", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 1
    assert "nothing to compare with" in capsys.readouterr().out


def test_benchmarks_without_a_row_are_no_success(monkeypatch, capsys):
    here = (check.cpu_name(), str(check.torch.get_num_threads()))
    key = ("clip_cpu", *here, "clip", "a case", "float32", "fastclip")
    found = iter([{key: 10.0}, {}])
    monkeypatch.setattr(check, "speedups", lambda folder: next(found))
    monkeypatch.setattr(check, "run", lambda *_: 0)
    monkeypatch.setattr(sys, "argv", ["check.py", "-k", "others"])
    assert check.main() == 1
    assert "nothing was compared" in capsys.readouterr().out


def counts(**cost: int) -> list[dict[str, str]]:
    return [{"call": c, "tensors": "9", "instructions": str(n)} for c, n in cost.items()]


@pytest.mark.parametrize(("now", "lines"), [(104_000, 0), (110_000, 1), (90_000, 0)])
def test_a_call_of_more_instructions_is_found(now, lines):
    found = instructions.worse(counts(clip=now), counts(clip=100_000))
    assert len(found) == lines


def test_a_call_in_one_table_only_is_found():
    assert len(instructions.worse(counts(clip=9), counts(clip=9, norm=9))) == 1


@pytest.mark.slow
def test_instructions_have_not_risen():
    if reason := instructions.incomparable():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, instructions.__file__, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
