"""Each of examples/ runs, on a CPU and without a network, and does what it says."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the sources")
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def example(name: str) -> Any:
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_an_example_is_short_and_says_how_it_is_run(program: Path) -> None:
    text = program.read_text()
    assert len(text.splitlines()) < 80
    assert re.search(rf"(python|launch|torchrun .*) (examples/)?{program.name}", text)


def test_the_page_of_examples_names_each_of_them() -> None:
    page = (EXAMPLES / "README.md").read_text()
    files = {f.name for f in EXAMPLES.iterdir() if f.suffix in (".py", ".ipynb")}
    assert set(re.findall(r"\]\(([\w.]+)\)", page)) == files


def test_plain_pytorch(tmp_path: Path) -> None:
    first, last = example("plain_pytorch").main(csv=str(tmp_path / "norms.csv"))
    assert last < 0.5 * first
    with (tmp_path / "norms.csv").open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == [
            "10",
            "20",
            "30",
            "40",
            "50",
            "60",
        ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    first, last = example("mixed_precision").main(dtype=dtype)
    assert last < 0.5 * first


@pytest.mark.slow
def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    trainer = example("lightning_trainer").main(folder=str(tmp_path))
    assert float(trainer.callback_metrics["loss"]) < 1.0
    text = (Path(trainer.logger.log_dir) / "metrics.csv").read_text()
    assert "norms/grad_norm/layers.0" in text.splitlines()[0]


@pytest.mark.slow
def test_accelerate() -> None:
    pytest.importorskip("accelerate")
    first, last = example("accelerate_loop").main()
    assert last < 0.7 * first


@pytest.mark.slow
def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    history = example("transformers_trainer").main(folder=str(tmp_path))
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert any("norms/grad_norm" in row for row in history)


@pytest.mark.slow
def test_fsdp2_under_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    root = str(EXAMPLES.parent)
    done = subprocess.run(
        [*command, str(EXAMPLES / "fsdp2.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = re.findall(r"rank (\d): loss ([\d.]+) -> ([\d.]+)", done.stdout)
    assert sorted(rank for rank, _, _ in ranks) == ["0", "1"]
    assert all(float(last) < 0.8 * float(first) for _, first, last in ranks)


@pytest.mark.slow
def test_bert_groups(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    example("bert_groups").main()
    out = capsys.readouterr().out
    assert out.count("the same in both") == 2
    assert "bert.embeddings.word_embeddings.weight" in out


@pytest.mark.slow
def test_pranet() -> None:
    first, last = example("pranet").main()
    assert last < 0.8 * first


@pytest.mark.slow
def test_segmentation_models_pytorch() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    first, last = example("smp_structure_loss").main()
    assert last > max(0.7, first)


@pytest.mark.slow
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import needs_train  # noqa: F401

    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in {
        "NOTEBOOK_STEPS": "10",
        "PYTHONPATH": str(EXAMPLES.parent),
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "train_and_show.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    kinds = [
        kind
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        for kind in o.get("data", {})
    ]
    assert kinds.count("image/png") == 2
    assert list(tmp_path.rglob("report.html"))
