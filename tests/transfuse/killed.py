"""Runs in processes of their own that end by SIGKILL, and whether two runs ended alike."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.storage.checkpoint import CheckpointError, load_checkpoint
from fastclip.transfuse.training.trainer import Trainer

OnEvent = Callable[[str, str, str], object]
FAULT = 70  # the exit code of a process that raises
# Each process is forked from one that has imported all and done nothing: a fork of the tests' own
# process, whose autograd may have threads, cannot go backward.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["fastclip.transfuse.training.trainer"])
CLOCKED = ("seconds", "images_per_s", "memory_mib")  # columns that no two runs share
NOT_SHARED = (*CLOCKED, "record", "out", "resume")


def train(config: TrainConfig) -> int:
    """The command with --resume; without, where there is nothing to resume."""
    try:
        return Trainer(replace(config, resume=True)).fit()
    except CheckpointError:
        return Trainer(config).fit()


@dataclass(frozen=True)
class Note:
    """Writes each event into a file, in order."""

    log: Path

    def __call__(self, *event: str) -> None:
        with open(self.log, "a") as stream:
            stream.write("\t".join(event) + "\n")


@dataclass
class KillAt:
    """Ends the process at that occurrence of an event, from 1."""

    number: int
    event: tuple[str, str, str]
    seen: int = 0

    def __call__(self, *event: str) -> None:
        self.seen += event == self.event
        if event == self.event and self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    config: TrainConfig, on_event: OnEvent | None = None, kill_after_s: float | None = None
) -> int:
    """Train in a process of its own: its exit code, or -9 where it was killed.

    Args:
        config: with --out.
        on_event: called there with the name, the point and the file's name of each event in which
            files are changed; it travels there by pickle.
        kill_after_s: seconds until SIGKILL.
    """
    process = FORKS.Process(target=_run, args=(config, on_event))
    process.start()
    process.join(kill_after_s)
    if kill_after_s is not None:
        process.kill()
        process.join()
    code = process.exitcode
    assert code is not None
    if code == FAULT:
        raise AssertionError(Path(f"{config.out}.error").read_text())
    return code


def _run(config: TrainConfig, on_event: OnEvent | None) -> None:
    code = FAULT
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        torch.set_num_threads(1)  # the networks are tiny
        if on_event is not None:
            sys.addaudithook(_hook(on_event))
        code = train(config)
    except BaseException:
        Path(f"{config.out}.error").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _hook(on_event: OnEvent) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "fastclip.write":
            on_event(event, args[0], Path(args[1]).name)
        elif event in ("os.link", "os.remove", "os.rename"):
            name = Path(os.fsdecode(args[1 if event == "os.rename" else 0])).name
            if not name.endswith(".part"):  # a file beside has a name of its own each time
                on_event(event, "", name)

    return hook


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not share, but for their clocks; nothing where they are equal."""
    names, others = ({file.name for file in folder.iterdir()} for folder in (one, other))
    found = [f"{name} is in one of them" for name in sorted(names ^ others)]
    for name in sorted(names & others):
        if name.endswith(".pt"):
            contents = [load_checkpoint(folder / name) for folder in (one, other)]
            found += _unequal(*contents, where=name)
        elif name.endswith(".csv"):
            rows = [_rows(folder / name) for folder in (one, other)]
            found += [name] * (rows[0] != rows[1])
        elif name == "overlays.png":
            found += [name] * ((one / name).read_bytes() != (other / name).read_bytes())
    return found


def _rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return [{k: v for k, v in r.items() if k not in CLOCKED} for r in csv.DictReader(stream)]


def _unequal(one: Any, other: Any, where: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if key not in NOT_SHARED]
        return [
            line
            for key in keys
            for line in _unequal(one.get(key), other.get(key), f"{where}/{key}")
        ]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for at, pair in pairs for line in _unequal(*pair, f"{where}/{at}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other else [f"{where}: {one} and {other}"]
