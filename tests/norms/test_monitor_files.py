"""A monitor's arguments, its files and writers, resuming, and what is left after close()."""

from __future__ import annotations

import csv
import gc
import warnings
import weakref
from pathlib import Path

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


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"every": 2.5}, TypeError),
        ({"every": "2"}, TypeError),
        ({"every": True}, ValueError),
        ({"every": -1}, ValueError),
        ({"writer": "runs/first"}, TypeError),
        ({"writer": Failing}, TypeError),
        ({"csv": 3}, TypeError),
        ({"max_norm": "one"}, TypeError),
        ({"max_norm": float("nan")}, ValueError),
        ({"max_norm": -1.0}, ValueError),
        ({"vanishing": None}, TypeError),
        ({"exploding": float("nan")}, ValueError),
        ({"by": "layer"}, ValueError),
        ({"depth": 0, "by": "depth"}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_when_made(kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))):
        parts(**kwargs)


def test_the_model_and_the_optimizer_belong_together():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="none of its 2"):
        fastclip.NormMonitor(model, optimizer)
    with pytest.raises(TypeError, match="named_parameters"):
        fastclip.NormMonitor(model.parameters(), optimizer)
    with pytest.raises(TypeError, match="optimizer"):
        fastclip.NormMonitor(model, model)


@pytest.mark.parametrize(
    ("norm", "error"),
    [
        (torch.ones(3), ValueError),
        (torch.ones(0), ValueError),
        (torch.tensor(1j), TypeError),
        (torch.tensor(True), TypeError),
        ("1.0", TypeError),
        (None, TypeError),
        ([1.0], TypeError),
    ],
)
def test_a_norm_that_is_no_number_is_refused_and_training_goes_on(norm, error):
    model, optimizer, monitor = parts()
    with pytest.raises(error, match="total_norm"):
        monitor.observe(norm)
    train(model, optimizer)
    monitor.close()
    assert len(monitor.history) == 2


@pytest.mark.parametrize(
    "norm", [1.5, torch.tensor([[1.5]]), torch.tensor(1.5, dtype=torch.float16)]
)
def test_numbers_of_several_kinds(norm):
    model, optimizer, monitor = parts(max_norm=1.0)
    model(torch.ones(1, 2)).sum().backward()
    monitor.observe(norm)
    optimizer.step()
    assert monitor.history[0]["grad_norm"] == 1.5
    assert monitor.history[0]["clip_frequency"] == 1.0


def test_a_norm_that_is_overwritten_later_counts_as_it_was():
    model, optimizer, monitor = parts()
    norm = torch.tensor(1.5)  # as a captured graph's output is
    model(torch.ones(1, 2)).sum().backward()
    monitor.observe(norm)
    norm.fill_(9.0)
    optimizer.step()
    assert monitor.history[0]["grad_norm"] == 1.5


@pytest.mark.parametrize("how", [lambda m: list(m.named_parameters()), torch.compile])
def test_pairs_and_wrapped_models(how):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(how(model), optimizer, every=1)
    train(model, optimizer)
    monitor.close()
    assert {row["worst_parameter"] for row in monitor.history} <= {"weight", "bias"}


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)


def test_a_wrapped_optimizer_is_found():
    model = nn.Linear(2, 2)
    optimizer = Wrapper(Wrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    monitor = fastclip.NormMonitor(model, optimizer, every=2)
    train(model, optimizer, 4)
    monitor.close()
    assert [row["step"] for row in monitor.history] == [2, 4]


def test_warnings_point_at_the_line_of_the_step():
    model, optimizer, monitor = parts(exploding=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer)
        monitor.close()
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name] * 2
