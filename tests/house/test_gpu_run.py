"""What `make gpu` keeps when a kernel fails, a test hangs, a process dies or the device is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
supervise = pytest.importorskip("gpu.supervise", reason="needs the sources")

WORKER = """
import os, sys, time
from pathlib import Path
from gpu import supervise

def ok(): return {"rows": [1]}
def wrong(): return {"failed": "relative error 1"}
def raises(): raise ValueError("no such dtype")
def hangs(): time.sleep(60)
def dies(): os._exit(11)
def loses():
    lost.append(1)
    raise RuntimeError("illegal memory access")

lost = []
calls = {name: globals()[name.partition(" ")[0]] for name in sys.argv[2:]}
supervise.work(calls, Path(sys.argv[1]), lambda: bool(lost))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'bench'}")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)

    def supervised(items, seconds=60.0, item_seconds=20.0):
        journal = tmp_path / "part.jsonl"
        command = [sys.executable, str(worker), str(journal)]
        deadline = time.monotonic() + seconds
        return (
            supervise.supervise(
                lambda rest: [*command, *rest], items, journal, deadline, item_seconds
            ),
            journal,
        )

    return supervised


def test_failures_cost_their_items_alone(run):
    items = ["ok 1", "wrong", "raises", "ok 2", "dies", "ok 3", "loses", "ok 4"]
    outcome, journal = run(items)
    assert outcome.passed == ["ok 1", "ok 2", "ok 3", "ok 4"]
    assert outcome.failed == {
        "wrong": "relative error 1",
        "raises": "ValueError: no such dtype",
        "dies": "the process died (exit status 11)",
        "loses": "RuntimeError: illegal memory access",
    }
    assert outcome.left == []
    assert [e["rows"] for e in supervise.entries(journal) if "rows" in e] == [[1]] * 4


@pytest.mark.slow
def test_what_hangs_is_named_and_the_rest_goes_on(run):
    outcome, _ = run(["hangs", "ok"], item_seconds=4)
    assert outcome.failed == {"hangs": "hung for 4 s"}
    assert outcome.passed == ["ok"]


@pytest.mark.slow
def test_the_clock_keeps_what_was_found(run):
    outcome, _ = run(["ok 1", "hangs", "ok 2"], seconds=4)
    assert outcome.passed == ["ok 1"]
    assert outcome.failed == {"hangs": "out of time"}
    assert outcome.left == ["ok 2"]


def test_a_worker_that_does_not_start_is_an_error(tmp_path):
    journal = tmp_path / "part.jsonl"
    command = [sys.executable, "-c", "import no_such_module"]
    outcome = supervise.supervise(
        lambda rest: command, ["a", "b"], journal, time.monotonic() + 30, 20
    )
    assert "before the first item" in outcome.failed["a"]
    assert outcome.left == ["b"]
    assert "no_such_module" in journal.with_suffix(".log").read_text()


@pytest.mark.slow
def test_pytest_outcomes_reach_the_journal(tmp_path):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_skipped(): pytest.skip('no card')\n"
    )
    journal = tmp_path / "tests.jsonl"
    paths = f"{ROOT}{os.pathsep}{ROOT / 'bench'}"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "gpu.outcomes", "--journal", journal, tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
    )
    done = {e["done"].partition("::")[2]: e for e in supervise.entries(journal)}
    assert done["test_good"]["failed"] == done["test_good"]["skipped"] == ""
    assert "1 == 2" in done["test_bad"]["failed"]
    assert "no card" in done["test_skipped"]["skipped"]
    assert len(json.loads(journal.read_text().splitlines()[0])) == 1


def test_the_model_of_a_rows_time():
    from gpu import model

    copy = 3000.0  # GB/s
    gib = model.clip_ms("fastclip CUDA", 1, 1 << 30, False, copy, 0)
    assert gib == pytest.approx(0.358 + 0.006, abs=1e-3)  # one read, two launches
    assert model.clip_ms("fastclip CUDA", 1, 1 << 30, True, copy, 0) > 2.9 * gib
    assert model.clip_ms("torch foreach", 1, 1 << 30, False, copy, 7) > 2.9 * gib
    many = model.clip_ms("fastclip CUDA", 10_000, 4_000_000, False, copy, 0)
    assert many == pytest.approx(0.0013 + 10 * 0.003, abs=1e-3)  # five pages, twice
    own = model.loss_bytes(16 * 352 * 352, 3, 2, 4)
    assert model.loss_ms("fastclip", 0, own, copy, 0) == pytest.approx(0.028 + 0.009, abs=2e-3)
    assert model.loss_ms("eager", 3_000_000, own, copy, 100) == pytest.approx(0.301)


def test_what_an_earlier_run_left_is_set_aside(tmp_path):
    from gpu.run import set_aside

    for text in ("first", "second"):
        (tmp_path / "rows.jsonl").write_text(text)
        (tmp_path / "on_host").mkdir(exist_ok=True)
        set_aside(tmp_path)
        assert not (tmp_path / "rows.jsonl").exists()
    assert (tmp_path / "earlier-1" / "rows.jsonl").read_text() == "first"
    assert (tmp_path / "earlier-2" / "rows.jsonl").read_text() == "second"
    assert (tmp_path / "on_host").is_dir()


def test_a_stand_in_older_than_its_sources_is_built_again(tmp_path, monkeypatch):
    import cuda_on_host

    class Built(Exception):
        pass

    def build(folder, library):
        raise Built

    monkeypatch.setattr(cuda_on_host, "_build_extension", build)
    (tmp_path / "_native.so").touch()
    os.utime(tmp_path / "_native.so", (1, 1))
    with pytest.raises(Built):
        cuda_on_host.extension(tmp_path)


def test_the_check_finds_the_wrong_kernel_of_a_rehearsal():
    import torch
    from gpu import check, rehearsal

    assert "relative error 5.0e-01" in rehearsal.wrong_kernel()["failed"]
    assert check.clip_check((torch.float32,), "cpu")["failed"] == ""  # the kernels are back


def test_a_part_that_does_not_start_names_its_cause(tmp_path):
    from gpu.run import part

    (failed,) = part("gpu.no_such_part", "host", tmp_path, time.monotonic() + 60).failed.items()
    assert failed[0] == "gpu.no_such_part"
    assert "No module named" in failed[1]
    assert "no_such_part" in (tmp_path / "no_such_part.log").read_text()
