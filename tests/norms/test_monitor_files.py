"""A monitor's files and writers, resuming, and what is left after close()."""

from __future__ import annotations

import csv
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core


def parts(**kwargs):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, fastclip.NormMonitor(model, optimizer, **{"every": 1, **kwargs})


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()


def steps_in(path) -> list[str]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not [row for row in rows if None in row or None in row.values()]
    return [row["step"] for row in rows]


def run(path, steps=2) -> None:
    model, optimizer, monitor = parts(csv=path)
    train(model, optimizer, steps)
    monitor.close()


def test_the_folder_is_made_and_the_header_written_at_once(tmp_path):
    path = tmp_path / "a" / "b" / "norms.csv"
    parts(csv=path)
    assert path.read_text().startswith("step,grad_norm,")


@pytest.mark.parametrize("text", ["", "step,grad_no", "HEADER"])
def test_an_empty_file_and_one_cut_off_in_its_header(tmp_path, text):
    path = tmp_path / "norms.csv"
    run(path)
    header = path.read_text().splitlines()[0]
    path.write_text(text.replace("HEADER", header))
    run(path)
    assert steps_in(path) == ["1", "2"]


@pytest.mark.parametrize("text", ["epoch,loss\n1,0.5\n", "epoch", "step\n", "\x00\xff\n", '"'])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"log\.csv"):
        parts(csv=path)
    assert path.read_text() == text


def test_a_spreadsheets_newlines_and_mark_are_taken(tmp_path):
    path = tmp_path / "norms.csv"
    run(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    run(path)
    assert len(path.read_text().splitlines()) == 5


@pytest.mark.parametrize("kept", [1, 5, 30])
def test_a_row_that_was_cut_off_is_dropped(tmp_path, kept):
    path = tmp_path / "norms.csv"
    run(path, 3)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:kept])
    run(path, 1)
    assert steps_in(path) == ["1", "2", "1"]


def test_a_whole_row_without_its_newline_stays(tmp_path):
    path = tmp_path / "norms.csv"
    run(path)
    path.write_text(path.read_text().rstrip("\n"))
    run(path)
    assert steps_in(path) == ["1", "2", "1", "2"]


def test_a_folder_in_place_of_the_file_is_an_error_when_made(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        parts(csv=tmp_path)


class Failing:
    def __init__(self):
        self.calls = 0

    def add_scalar(self, *_):
        self.calls += 1
        raise OSError("disk full")


def test_a_sink_that_fails_warns_once_and_training_goes_on(tmp_path):
    path = tmp_path / "logs" / "norms.csv"
    writer = Failing()
    model, optimizer, monitor = parts(csv=path, writer=writer)
    with pytest.warns(UserWarning, match="Failing"):
        train(model, optimizer)
    path.unlink()
    path.mkdir()  # nothing can be written there
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 4)
        monitor.close()
    texts = [str(w.message) for w in caught]
    assert sum("norms.csv" in text for text in texts) == 1
    assert not any("disk full" in text for text in texts)
    assert writer.calls == 6
    assert len(monitor.history) == 6
    assert all(w.filename == __file__ for w in caught)


def test_a_file_that_was_deleted_begins_anew(tmp_path):
    path = tmp_path / "norms.csv"
    model, optimizer, monitor = parts(csv=path)
    train(model, optimizer, 3)
    monitor.flush()
    path.unlink()
    train(model, optimizer, 2)
    monitor.close()
    assert steps_in(path) == ["4", "5"]


def test_steps_go_on_from_a_saved_state(tmp_path):
    path = tmp_path / "norms.csv"
    state = None
    for _ in range(2):
        model, optimizer, monitor = parts(csv=path, every=2, max_norm=1e-9)
        if state is not None:
            monitor.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for _ in range(3):
            monitor.observe(1.0)
            train(model, optimizer, 1)
        state = monitor.state_dict()
        torch.save(state, tmp_path / "state.pt")
        monitor.close()
    assert state == {"step": 6, "counts": [0.0, 0.0, 0.0]}
    assert steps_in(path) == ["2", "4", "6"]
    with pytest.raises(ValueError, match="step"):
        monitor.load_state_dict({})


def test_a_context_closes():
    model, optimizer, monitor = parts()
    with monitor as entered:
        assert entered is monitor
        train(model, optimizer)
    train(model, optimizer)
    assert [row["step"] for row in monitor.history] == [1, 2]


def test_nothing_is_kept_after_close():
    model, optimizer, monitor = parts()
    train(model, optimizer)
    monitor.close()
    norms = [torch.tensor(1.0) for _ in range(10)]
    for norm in norms:
        monitor.observe(norm)
    kept = [weakref.ref(x) for x in (*norms, model)]
    optimizer.zero_grad()
    del norms, norm, model, optimizer
    gc.collect()
    assert [ref() for ref in kept] == [None] * 11
    assert len(monitor.history) == 2
