"""Runs items in worker processes and keeps what each has found, whatever ends a worker.

A worker appends to a journal: {"start": item}, then {"done": item, "failed": reason or "", ...}.
One that dies, hangs in an item or loses the device costs that item alone: it is written down as
failed, and a new worker goes on with the rest until the time is up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEVICE_LOST = 70  # the exit status of a worker whose device answers no more
POLL_SECONDS = 0.1
Entry = dict[str, object]


@dataclass
class Outcome:
    """What became of each item, in the order of their ends."""

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # item: why
    failed: dict[str, str] = field(default_factory=dict)  # item: why
    left: list[str] = field(default_factory=list)  # not begun when the time was up

    def add(self, other: Outcome) -> None:
        self.passed += other.passed
        self.skipped |= other.skipped
        self.failed |= other.failed
        self.left += other.left


def work(items: Mapping[str, Callable[[], Entry]], journal: Path, is_lost: Callable) -> None:
    """A worker's whole life: each item called, its result or its exception in the journal."""
    for name, call in items.items():
        write(journal, {"start": name})
        try:
            entry: Entry = {"done": name, "failed": "", **call()}
        except Exception as error:  # one item must not lose the others; the parent names it
            entry = {"done": name, "failed": f"{type(error).__name__}: {error}"}
        write(journal, entry)
        if entry["failed"] and is_lost():
            os._exit(DEVICE_LOST)  # destructors would wait for the device


def write(journal: Path, entry: Entry) -> None:
    with journal.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def device_is_lost() -> bool:
    """Whether a CUDA error has come that every later call repeats."""
    if os.environ.get("FASTCLIP_REHEARSED_LOSS"):
        return True
    import torch  # not above: the parent and its tests start sooner without

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def supervise(
    command: Callable[[list[str]], Sequence[str]],
    items: Sequence[str],
    journal: Path,
    deadline: float,
    item_seconds: float,
) -> Outcome:
    """Has workers do items until `deadline` (of time.monotonic).

    Args:
        command: the worker's command line for the items that are left.
        items: names, each once.
        journal: the file that workers append to; its name with .log gets their output.
        item_seconds: the longest that one item may take, the start of a worker included.
    """
    outcome, rest = Outcome(), list(items)
    journal.touch()
    with journal.with_suffix(".log").open("a") as log:
        while rest and time.monotonic() < deadline:
            begin = journal.stat().st_size
            worker = subprocess.Popen(
                command(rest), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            ended = _watch(worker, journal, deadline, item_seconds)
            started = _read(journal, begin, outcome)
            for name in started:
                if name not in {*outcome.passed, *outcome.skipped, *outcome.failed}:
                    outcome.failed[name] = ended
            if not started:  # nothing was begun: a new worker would do no better
                outcome.failed[rest[0]] = f"{ended} before the first item: see {log.name}"
                break
            rest = [name for name in rest if name not in started]
    outcome.left = [name for name in rest if name not in outcome.failed]
    return outcome


def _watch(worker: subprocess.Popen, journal: Path, deadline: float, item_seconds: float) -> str:
    """Waits for the worker's end, or ends it; returns how it ended."""
    size, since = journal.stat().st_size, time.monotonic()
    while worker.poll() is None:
        now = time.monotonic()
        if journal.stat().st_size != size:
            size, since = journal.stat().st_size, now
        if now > deadline or now - since > item_seconds:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            return "out of time" if now > deadline else f"hung for {item_seconds:.0f} s"
        time.sleep(POLL_SECONDS)
    if worker.returncode == DEVICE_LOST:
        return "the device was lost"
    return f"the process died (exit status {worker.returncode})"


def _read(journal: Path, begin: int, outcome: Outcome) -> list[str]:
    """Puts a worker's entries into the outcome; returns the items that it began."""
    started = []
    for line in journal.read_bytes()[begin:].decode().splitlines():
        entry = json.loads(line)
        if "start" in entry:
            started.append(entry["start"])
        elif entry["failed"]:
            outcome.failed[entry["done"]] = entry["failed"]
        elif entry.get("skipped"):
            outcome.skipped[entry["done"]] = entry["skipped"]
        else:
            outcome.passed.append(entry["done"])
    return started


def entries(journal: Path) -> list[Entry]:
    """The finished items' entries, failed ones too."""
    if not journal.exists():
        return []
    found = [json.loads(line) for line in journal.read_text().splitlines()]
    return [entry for entry in found if "done" in entry]
