"""A run that is killed at any moment goes on, and ends as one that never was."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import needs_train  # noqa: F401
import pytest
from killed import KillAt, Note, differences, run

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.storage.files import EVENT, POINTS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
KILL_S = float(os.environ.get("FASTCLIP_KILL_S", "45"))
MOMENTS = 30


def config(out: Path) -> TrainConfig:
    """Two epochs of three steps, a save in the middle of each; two of the saves are kept."""
    return TrainConfig(
        data="synthetic",
        model="transfuse_t",
        size="32x32",
        out=out,
        epochs=2,
        batch_size=2,
        lr=1e-3,
        schedule="cosine",
        synthetic_images=6,
        save_every="2",
        keep=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str, str]]]:
    """A run that is never killed, and what it did to its files, in order."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder / "events"

    assert run(config(folder / "run"), Note(log)) == 0
    lines = log.read_text().splitlines()
    return folder / "run", [tuple(line.split("\t")) for line in lines]  # type: ignore[misc]


def test_the_run_passes_every_point_of_every_file(whole) -> None:
    events = Counter(whole[1])
    for name in ("last.pt", "best.pt", "metrics.csv"):
        for point in POINTS:
            assert events[EVENT, point, name] >= (4 if name == "last.pt" else 1), (point, name)
    assert any(event == "os.link" for event, _, _ in events)


def test_between_the_first_last_pt_and_the_first_best_pt(whole, tmp_path: Path) -> None:
    for number in range(1, 4):
        stop = KillAt(number, (EVENT, "done", "last.pt"))
        assert run(config(tmp_path / str(number)), stop) == -signal.SIGKILL
        assert run(config(tmp_path / str(number))) == 0
        assert differences(whole[0], tmp_path / str(number)) == []


@pytest.mark.slow
def test_killed_at_each_named_point(whole, tmp_path: Path) -> None:
    """In an order of its own each day, for KILL_S seconds: all of them take some ten minutes."""
    folder, events = whole
    points = list(Counter(events).items())
    day = time.strftime("%Y%m%d")
    random.Random(day).shuffle(points)
    end = time.monotonic() + KILL_S
    for index, (event, count) in enumerate(points):
        if time.monotonic() > end:
            print(f"{day}: {index} of {len(points)} points; FASTCLIP_KILL_S=900 has all")
            break
        # Where nothing is made up for at a resume, once is enough.
        for number in {1, count if ".pt" in event[2] else 1}:
            out = tmp_path / f"{index}-{number}"
            assert run(config(out), KillAt(number, event)) == -signal.SIGKILL, event
            assert run(config(out)) == 0
            assert differences(folder, out) == [], (event, number)


@pytest.mark.slow
def test_killed_at_thirty_random_moments(whole, tmp_path: Path) -> None:
    started = time.monotonic()
    assert run(config(tmp_path / "timed")) == 0
    duration = time.monotonic() - started
    choose, killed = random.Random(0), 0
    for moment in range(MOMENTS):
        out = tmp_path / str(moment % 10)  # three times in each of ten runs
        killed += run(config(out), kill_after_s=choose.uniform(0, duration)) != 0
        if moment >= MOMENTS - 10:
            assert run(config(out)) == 0
            assert differences(whole[0], out) == [], moment
    assert killed >= MOMENTS // 3
