"""Runs of the trainer in several processes, and what they have in common."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.storage.checkpoint import load_checkpoint

# Each starts several processes, and all take ten minutes of two cores.
every = pytest.mark.skipif(
    "FASTCLIP_TORCHRUN" not in os.environ, reason="FASTCLIP_TORCHRUN=1 runs these, for ten minutes"
)
RANKED = Path(__file__).with_name("ranked.py")
SECONDS = 240  # of a run that hangs
# Ten steps an epoch; five validation images, which no number of processes divides. Plain descent
# at a small rate: the network takes maxima of values that are equal but for rounding, and Adam
# makes large steps of small gradients; one process that sees a batch in another order ends
# elsewhere too.
TINY = ["--data", "synthetic", "--model", "transfuse_t", "--size", "32x32", "--device", "cpu"]
TINY += ["--synthetic-images", "40", "--batch-size", "4", "--epochs", "2", "--no-report"]
TINY += ["--optimizer", "sgd", "--lr", "1e-4", "--norms-every", "4"]


class Run:
    """A command that is running; it and what it has started end with the block."""

    def __init__(self, command: list[str], **environment: str) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, start: str) -> None:
        """Read its lines until one begins like this."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return
        raise AssertionError(self.end())

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and what it has written."""
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err


def launched(
    world: int, out: Path, *flags: str, fault: str = "", restarts: int = 0, program: str = ""
) -> Run:
    """A run in so many processes; one without torchrun. `program` is a file to run instead."""
    what = [program] if program else ["-m", "fastclip"]
    what = [str(RANKED), *fault.split()] if fault else what
    command = [*what, "train", *TINY, "--out", str(out), *flags]
    if world == 1:
        return Run(command)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    return Run([*launcher, f"--max-restarts={restarts}", *command])


def finished(world: int, out: Path, *flags: str, **options: Any) -> str:
    with launched(world, out, *flags, **options) as run:
        code, said, err = run.end()
    assert code == 0, err
    return said


def losses(out: Path) -> torch.Tensor:
    """Of each of the last steps, [steps, 3]."""
    return torch.stack(load_checkpoint(out / "last.pt")["record"]["recent"])


def moved(out: Path) -> float:
    """The largest change of a weight since the start."""
    torch.manual_seed(0)
    weights = load_checkpoint(out / "last.pt")["weights"]
    first = create_model("transfuse_t").named_parameters()
    return max(float((weights[name] - start.detach()).abs().max()) for name, start in first)


def apart(one: Path, other: Path) -> float:
    """The largest difference between the weights of two runs."""
    files = (load_checkpoint(out / "last.pt")["weights"] for out in (one, other))
    pairs = zip(*(weights.values() for weights in files), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def validations(out: Path) -> list[list[float]]:
    with open(out / "metrics.csv", newline="") as stream:
        names = ("step", "val_loss", "dice", "iou", "accuracy")
        return [[float(row[name]) for name in names] for row in csv.DictReader(stream)]


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("fastclip: error")]
