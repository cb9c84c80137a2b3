"""`fastclip bench` on small models: what it prints, writes, and refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastclip import cli
from fastclip.benchmark import machine, operations, run, step
from fastclip.benchmark.models import builtin, libraries, workload

pytestmark = pytest.mark.slow  # it measures

BUILDS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def with_batch():
    return net(), torch.ones(4, 6)

def with_loss():
    model = net()
    return model, lambda given: given(torch.ones(4, 6).to(next(given.parameters()))).sum()

def model_alone():
    return net()

def frozen():
    return net().requires_grad_(False), torch.ones(4, 6)

def without_gradient():
    return net(), lambda model: model(torch.ones(4, 6)).sum() * 0

def not_a_model():
    return 3
"""


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    """A folder with builds as the current one, and small buffers."""
    (tmp_path / "bench_builds.py").write_text(BUILDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "LIMIT_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(step, "MOST_ROUNDS", 3)


def bench(capsys, *arguments: str) -> str:
    """What the command prints, after it ended well."""
    assert run.main(["--seconds", "1", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    """The one line of an error."""
    assert run.main(["--seconds", "1", *arguments]) == 2
    lines = [text for text in capsys.readouterr().err.splitlines() if "measuring" not in text]
    assert len(lines) == 1, lines
    return lines[0].removeprefix("fastclip: error: ")


@pytest.mark.parametrize("build", ["with_batch", "with_loss"])
def test_a_model_of_ones_own(capsys, build):
    out = bench(capsys, "--model", f"bench_builds:{build}", "--json", "result.json")
    assert "4 tensors with gradients" in out
    assert "Single calls" not in out
    result = json.loads(Path("result.json").read_text())
    assert result["step"]["elements"] == 6 * 8 + 8 + 8 * 3 + 3
    for times in result["step"]["modes"].values():
        assert times["alone"].keys() == {"torch", "fastclip"}
        assert times["with_optimizer"].keys() == {"torch", "fastclip", "fastclip, in the step"}
        assert all(time["calls"] == 3 for time in times["alone"].values())
    assert result["verdict"][0].startswith("With nothing to clip, your clip takes")
    shown = out[out.index("Verdict") :].splitlines()[1:]
    assert shown == [f"  {sentence}" for sentence in result["verdict"]]
    assert all(error < 1e-6 for error in result["step"]["errors"].values())


def test_each_mode_clips_or_does_not(monkeypatch):
    """The limits are twice and half the norm, whichever step they come in."""
    seen = []
    original = step.CLIPS["torch"]

    def spy(parameters, limit):
        norm = original(parameters, limit)
        seen.append(round(limit / norm.item(), 3))
        return norm

    monkeypatch.setitem(step.CLIPS, "torch", spy)
    work = workload.of_function("bench_builds:with_batch", workload.Request())
    optimizer = step.optimizer_of("sgd", work.parameters())
    step.measured(work, optimizer, "cpu", 0)
    assert sorted(set(seen)) == [0.5, 2.0, math.inf]


def test_a_model_alone_takes_a_shape(capsys):
    model = ("--model", "bench_builds:model_alone")
    assert "2 x 6" in bench(capsys, *model, "--input-shape", "6", "--batch-size", "2")
    assert "came without a batch" in refused(capsys, *model)
    line = refused(capsys, *model, "--input-shape", "5")
    assert "forward pass failed on 8 x 5" in line


@pytest.mark.parametrize(
    ("optimizer", "in_step"), [("SGD", True), ("rmsprop", False), ("AdamW", True)]
)
def test_any_optimizer_by_its_name(capsys, optimizer, in_step):
    out = bench(capsys, "--model", "bench_builds:with_batch", "--optimizer", optimizer)
    assert optimizer.lower() in out.lower()
    assert ("clip_grads_in_step_  " in out) == in_step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "bench_builds:frozen"], "no parameter requires a gradient"),
        (["--model", "bench_builds:without_gradient"], "the norm of the gradients is 0.0"),
        (["--model", "bench_builds:not_a_model"], "not_a_model() returned int; wanted are a model"),
        (["--model", "bench_builds:nothing"], "bench_builds.py has no function 'nothing'"),
        (["--model", "nowhere_here:build"], "No module named 'nowhere_here'"),
        (["--model", "resnet50"], "say where it is from, as timm:resnet50, hf:resnet50 or"),
        (["--optimizer", "adamx"], "--optimizer adamx: torch.optim has adadelta, adafactor"),
        (["--optimizer", "lbfgs"], "--optimizer lbfgs: torch.optim has"),
        (["--json", "no/where.json"], "no/where.json: there is no folder"),
        (["--input-shape=3x"], "argument --input-shape: must be like 3x224x224, got '3x'"),
        (["--batch-size=0"], "argument --batch-size: must be at least 1, got '0'"),
        (["--batch-size=x"], "argument --batch-size: must be at least 1, got 'x'"),
        (["--dtype=int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--modle", "x"], "unrecognized arguments: --modle x"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(capsys, arguments, message):
    if "--model" not in arguments:
        arguments = ["--model", "bench_builds:with_batch", *arguments]
    assert message in refused(capsys, *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(capsys):
    assert "finds no CUDA device here" in refused(capsys, "--device", "cuda")


def test_the_help_teaches_and_the_command_is_one_of_fastclips(capsys):
    assert cli.main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert "fastclip bench --model timm:resnet50" in out
    assert cli.main(["bench", "--model", "bench_builds:with_batch", "--seconds", "1"]) == 0
    assert "Verdict" in capsys.readouterr().out


def test_without_a_model_single_calls_are_measured_too(capsys, monkeypatch):
    monkeypatch.setattr(builtin, "LAYERS", 1)
    monkeypatch.setattr(operations, "LISTS", {"4 tensors of 5": [5] * 4})
    monkeypatch.setattr(operations, "LOSS_SHAPE", (1, 1, 32, 40))
    out = bench(capsys, "--batch-size", "1", "--sequence-length", "8")
    assert "small GPT, 1 x 8 tokens" in out
    assert "clip 4 tensors of 5, nothing to clip" in out
    assert "structure loss, 3 heads, 1x1x32x40, forward + backward" in out


def test_the_errors_of_the_loss_are_those_of_its_gradients(monkeypatch):
    monkeypatch.setattr(operations, "LOSS_SHAPE", (1, 1, 32, 40))
    found = operations.loss("cpu", "float32").errors
    assert all(0 < error < 1e-6 for error in found.values())
    monkeypatch.setattr(operations.fastclip, "structure_loss", lambda maps, mask: maps[0].sum())
    with pytest.raises(RuntimeError):  # a loss of other heads has no gradient for these
        operations.loss("cpu", "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "autocast"])
def test_dtypes(capsys, dtype):
    out = bench(capsys, "--model", "bench_builds:with_batch", "--dtype", dtype)
    size = 2 if dtype == "bfloat16" else 4
    assert f"{dtype}, AdamW, fused" in out
    assert f"{99 * size / 1e6:.1f} MB" in out


def test_a_picture(capsys):
    pytest.importorskip("matplotlib")
    bench(capsys, "--model", "bench_builds:with_batch", "--png", "step.png")
    with open("step.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


SIZES = {
    "bert-base-uncased": 109_514_298,
    "google-bert/bert-large-uncased": 335_174_458,
    "gpt2": 124_439_808,
    "distilbert-base-uncased": 66_985_530,
    "FacebookAI/roberta-base": 124_697_433,
    "t5-small": 60_506_624,
    "facebook/opt-125m": 125_239_296,
}


@pytest.mark.parametrize("name", SIZES)
def test_transformers_models_have_their_published_sizes(name, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.device("meta"):
        model = libraries._with_head(name, libraries._config(name, transformers), transformers)
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]


def test_an_unknown_model_gets_the_nearest_names(capsys):
    pytest.importorskip("transformers")
    line = refused(capsys, "--model", "hf:bert-bas-uncased")
    assert "nothing is downloaded" in line
    assert "nearest are bert-base-uncased" in line


@pytest.mark.slow
def test_a_timm_model(capsys):
    pytest.importorskip("timm")
    assert "nearest are resnet50" in refused(capsys, "--model", "timm:resnet5O")
    arguments = ["--model", "timm:resnet10t", "--batch-size", "2", "--input-shape", "3x32x32"]
    assert "timm:resnet10t, 2 x 3x32x32" in bench(capsys, *arguments)


@pytest.mark.slow
def test_a_transformers_model(capsys, monkeypatch):
    pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    monkeypatch.setitem(libraries.PUBLISHED, "bert-base-uncased", ("bert", small))
    arguments = ["--model", "hf:bert-base-uncased", "--batch-size", "1", "--sequence-length", "4"]
    assert "hf:bert-base-uncased, 1 x 4 tokens" in bench(capsys, *arguments)


def test_a_run_needs_torch_alone():
    absent = ["tyro", "timm", "torchvision", "PIL", "matplotlib", "numpy", "transformers", "rich"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from fastclip.benchmark import machine, run, step\n"
        "machine.LIMIT_BYTES['cpu'] = 1 << 20; step.MOST_ROUNDS = 3\n"
        "sys.exit(run.main(['--model', 'bench_builds:with_batch', '--seconds', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Verdict" in done.stdout
