"""The command line: one line for an error, no traceback, the right exit code."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastclip.cli import COMMANDS, main


def test_no_arguments_report_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    from fastclip.report import report

    assert main([]) == 0
    out = capsys.readouterr().out
    assert out == f"{report()}\nfastclip --help lists the commands.\n"


def test_module_and_help_need_no_extra() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['tyro', 'timm', 'torchvision', 'PIL']))\n"
        "from fastclip.cli import main; sys.exit(main(['--help']) + main([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("missing", ["tyro", "timm"])
def test_a_missing_extra_says_how_to_install_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from fastclip.cli import main; sys.exit(main(['train', '--data', 'synthetic']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert missing in line
    assert line.endswith("pip install 'fastclip-torch[train]'")


def test_an_unknown_command_gets_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "fastclip: error: unknown command 'trian': choose from train, evaluate, predict, "
        "report, export, info, download, bench\n"
    )


@pytest.fixture
def needs_extra() -> None:
    import needs_train  # noqa: F401


def unread(arguments: list[str], unbuffered: str, both: bool = False) -> tuple[int, str]:
    """The exit code, and stderr, of the command line where nobody reads its output."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fastclip", *arguments],
            stdout=writing,
            stderr=writing if both else subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


# The write fails as the command ends or, unbuffered, at once.
@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [([], ""), (["--help"], "1"), (["bench", "--help"], "")]
)
def test_a_reader_that_leaves_ends_it_in_quiet(arguments: list[str], unbuffered: str) -> None:
    assert unread(arguments, unbuffered) == (141, "")


@pytest.mark.usefixtures("needs_extra")
def test_a_reader_of_the_trainers_help_that_leaves_ends_it_too() -> None:
    assert unread(["train", "--help"], "1") == (141, "")


def test_a_reader_of_errors_that_leaves_ends_it_too() -> None:
    assert unread(["trian"], "", both=True) == (141, "")


@pytest.mark.parametrize("work", ["cli._dispatch", "benchmark.run.measured"])
def test_the_pipe_of_another_process_is_a_fault(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def worker_died(arguments: object) -> int:
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(f"fastclip.{work}", worker_died)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        main(["bench"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_on_a_full_disk_is_one_line(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastclip", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "fastclip: error: the output: No space left on device\n"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error that ends with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


BAD_TRAIN = [
    (["--clip-norm", "abc"], "--clip-norm: could not convert string to float: 'abc'"),
    (["--clip-norm", "0"], "--clip-norm must be more than 0 (inf never clips), got 0.0"),
    (["--clip-norm", "nan"], "--clip-norm must be more than 0"),
    (["--model", "transfuse_x"], "unknown model 'transfuse_x': choose from transfuse_t"),
    (["--size", "96"], "--size must be HxW, for example 192x256, got '96'"),
    (["--size", "100x128"], "image size 100x128 (HxW): both sides must be positive multiples"),
    (["--data", "/nowhere"], "--data /nowhere: no such folder (or say 'synthetic')"),
    (["--lr", "-1"], "--lr must be positive and finite, got -1.0"),
    (["--epochs", "0"], "--epochs must be at least 1, got 0"),
    (["--max-time", "0"], "--max-time must be more than 0, got 0.0"),
    (["--optimizer", "lion"], "invalid choice 'lion' for argument '--optimizer'"),
    (["--learning-rate", "1"], "Unrecognized options: --learning-rate"),
    (["--resume"], "--resume needs the --out of the run to continue"),
    (["--resnet-weights", "/no.pth", "--model", "transfuse_t"], "no weights file at /no.pth"),
]


@pytest.mark.usefixtures("needs_extra")
@pytest.mark.parametrize(("arguments", "message"), BAD_TRAIN)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    base = ["train", "--synthetic-images", "8", "--deit-weights", "/no.pth"]
    if "--data" not in arguments:
        base += ["--data", "synthetic"]
    if "--resume" not in arguments:
        base += ["--out", str(tmp_path / "run")]
    line = fails(capsys, *base, *arguments)
    assert line.startswith("fastclip: error: ")
    assert message in line
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Images of 32x48 are too small to share out, and threads that wait disturb other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("needs_extra", "one_thread")
def test_train_evaluate_predict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    from fastclip.transfuse.data.synthetic import synthetic_samples

    run, best = tmp_path / "run", str(tmp_path / "run" / "best.pt")
    train = ["train", "--data", "synthetic", "--model", "transfuse_t", "--size", "32x48"]
    train += ["--batch-size", "4", "--max-steps", "2", "--synthetic-images", "16"]
    assert main([*train, "--out", str(run)]) == 0
    assert "holds an earlier run" in fails(capsys, *train, "--out", str(run))

    table = tmp_path / "deep" / "scores.csv"
    assert main(["evaluate", "--checkpoint", best, "--data", "synthetic", "--csv", str(table)]) == 0
    assert "synthetic (seed 1), 2 images at 32x48: loss" in capsys.readouterr().out
    columns = table.read_text().splitlines()[0].split(",")
    assert columns[:5] == [
        "image",
        "network_size",
        "dice_own_size",
        "iou_own_size",
        "accuracy_own_size",
    ]
    assert "dice_network_size" in columns
    assert len(table.read_text().splitlines()) == 3

    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    pixels = synthetic_samples(1, (70, 90), seed=5).images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(photos / "a.png")
    predict = ["predict", "--checkpoint", best, "--images", str(photos), "--out", str(masks)]
    assert main(predict) == 0
    mask = np.asarray(Image.open(masks / "a_mask.png"))
    assert mask.shape == (70, 90)
    assert set(np.unique(mask)) <= {0, 255}
    assert np.asarray(Image.open(masks / "a_overlay.png")).shape == (70, 90, 3)

    (photos / "b.jpg").write_text("no image")
    capsys.readouterr()
    assert main(predict) == 1
    done = capsys.readouterr()
    assert "b.jpg cannot be read" in done.err
    assert "1 kept as they were" in done.out
    assert "no checkpoint at" in fails(capsys, "evaluate", "--checkpoint", "x", "--data", "y")
    missing = fails(capsys, "predict", "--checkpoint", best)
    assert "--images" in missing
    assert "--out" in missing


@pytest.mark.usefixtures("needs_extra")
def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--data", "--clip-norm", "--max-time", "--resume", "--pretrained"):
        assert flag in out


@pytest.mark.usefixtures("needs_extra")
def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastclip.transfuse.prediction.predict as predict

    def fault(config: Any) -> int:
        raise builtins.ZeroDivisionError("fault")

    monkeypatch.setattr(predict, "run_predict", fault)
    with pytest.raises(ZeroDivisionError):
        main(["predict", "--checkpoint", "x", "--images", "y", "--out", "z"])
