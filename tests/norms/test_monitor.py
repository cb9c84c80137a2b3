"""NormMonitor around a real optimizer."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastclip
from fastclip.norms.monitor import record

pytestmark = pytest.mark.core


class Writer:
    def __init__(self):
        self.rows = []

    def add_scalar(self, *row):
        self.rows.append(row)


def train(monitored, steps=6, gradient=1.0, **kwargs):
    net = nn.Linear(3, 2, bias=False)
    nn.init.constant_(net.weight, 2.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    monitor = fastclip.NormMonitor(net, optimizer, every=2, **kwargs) if monitored else None
    for step in range(steps):
        net.weight.grad = torch.zeros(2, 3)
        net.weight.grad[0, 0] = gradient * (step + 1)
        norm = fastclip.clip_grad_norm_(net.parameters(), 2.5)
        if monitor:
            monitor.observe(norm)
        optimizer.step()
    return net, monitor, optimizer


def test_rows_by_hand(tmp_path):
    writer = Writer()
    path = tmp_path / "norms.csv"
    plain = train(False)[0]
    net, monitor, optimizer = train(True, max_norm=2.5, csv=path, writer=writer)
    assert torch.equal(net.weight, plain.weight)  # watching changes nothing
    assert [row["step"] for row in monitor.history] == [2, 4, 6]
    first = monitor.history[0]  # gradients 1 then 2, weight 2 then 1.5 then 0.5
    assert first["grad_norm"] == pytest.approx(2.0)
    after = math.sqrt(5 * 4 + 0.25)
    assert first["param_norm"] == pytest.approx(after)
    assert first["update_ratio"] == pytest.approx(1.0 / after)
    assert [row["clip_frequency"] for row in monitor.history] == [0.0, 1.0, 1.0]
    assert first["worst_parameter"] == "weight"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["grad_norm"]) for row in rows] == pytest.approx([2.0, 4.0, 6.0])
    assert ("norms/grad_norm", pytest.approx(2.0), 2) in writer.rows
    monitor.close()
    for _ in range(2):
        optimizer.step()
    assert len(monitor.history) == 3


@pytest.mark.parametrize(
    ("gradient", "text"), [(1e9, "gradient norm"), (math.nan, "weight"), (1e-12, "vanish")]
)
def test_warnings(gradient, text):
    with pytest.warns(UserWarning, match=text):
        train(True, steps=2, gradient=gradient)


def test_quiet_in_between(recwarn):
    train(True)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_every_must_be_positive():
    net = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="every"):
        fastclip.NormMonitor(net, torch.optim.SGD(net.parameters()), every=0)


class Event:
    """A stand-in for a CUDA event: the copy before it arrives when the test says so."""

    def __init__(self):
        self.done = False

    def query(self):
        return self.done

    def synchronize(self):
        self.done = True


@pytest.fixture
def events(monkeypatch):
    """Values reach the host at the event that belongs to them; the events, as they come."""
    made = []

    def to_host(values):
        made.append(Event())
        return values, made[-1]

    monkeypatch.setattr(record, "to_host", to_host)
    return made


class Recorder(TorchDispatchMode):
    """Keeps the names of the ops for which the host would wait for a GPU."""

    WAITING = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")

    def __init__(self):
        super().__init__()
        self.waited, self.ops = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        out = func(*args, **(kwargs or {}))
        before, after = (
            {leaf.device.type for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)}
            for x in ((args, kwargs), out)
        )
        if func.name().partition(".")[0] in self.WAITING or ("cuda" in before and "cpu" in after):
            self.waited.append(func.name())
        return out


def steps(net, optimizer, monitor, count, device="cpu"):
    for _ in range(count):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        monitor.observe(torch.ones((), device=device))
        optimizer.step()


def test_rows_come_late_in_order_and_name_their_own_step(events, tmp_path):
    path = tmp_path / "norms.csv"
    _, monitor, optimizer = train(True, csv=path, max_norm=2.5)
    assert len(events) == 3
    assert monitor.history == []
    assert len(path.read_text().splitlines()) == 1  # the header
    events[1].done = True  # overtakes the first: rows keep their order
    optimizer.step()
    assert monitor.history == []
    events[0].done = True
    optimizer.step()
    assert [row["step"] for row in monitor.history] == [2, 4]
    for _ in range(2):
        monitor.close()
        assert [row["step"] for row in monitor.history] == [2, 4, 6, 8]
    assert [row["grad_norm"] for row in monitor.history][:3] == [2.0, 4.0, 6.0]
    with path.open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6, 8]


def test_flush_records_and_goes_on_watching(events):
    net, monitor, optimizer = train(True)
    monitor.flush()
    assert [row["step"] for row in monitor.history] == [2, 4, 6]
    steps(net, optimizer, monitor, 2)
    monitor.close()
    assert [row["step"] for row in monitor.history] == [2, 4, 6, 8]


def test_the_hooks_wait_for_nothing(events):
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(net, optimizer, every=2)
    with Recorder() as recorder:
        steps(net, optimizer, monitor, 4)
    assert len(events) == 2
    assert recorder.ops > 20
    assert recorder.waited == []
    with Recorder() as recorder:
        torch.ones(()).item()
    assert recorder.waited == ["aten::_local_scalar_dense"]


@pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch"
)
@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")])
def test_the_hooks_copy_nothing_back_from_a_gpu(events, devices):
    """On fake tensors, which have a device, and no values to wait for."""
    with FakeTensorMode(), Recorder() as recorder:
        net = nn.Sequential(*(nn.Linear(2, 2, device=device) for device in devices))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        monitor = fastclip.NormMonitor(net, optimizer, every=2, max_norm=1.0, by="depth")
        steps(net, optimizer, monitor, 4, device=devices[0])
        assert len(events) == 2
        assert recorder.waited == []
        torch.ones((), device="cuda").cpu()
        with pytest.raises(DataDependentOutputException):
            torch.ones((), device="cuda").item()
    assert recorder.waited == ["aten::_to_copy"]


def test_a_step_that_raises_is_not_measured(monkeypatch):
    _, monitor, optimizer = train(True, steps=5)
    original = optimizer._init_group
    monkeypatch.setattr(optimizer, "_init_group", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    monkeypatch.setattr(optimizer, "_init_group", original)
    optimizer.step()
    optimizer.step()
    assert [row["step"] for row in monitor.history] == [2, 4, 8]


@pytest.mark.gpu
def test_no_wait_on_a_gpu_and_the_rows_of_the_cpu(tmp_path):
    rows = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1)).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
        path = tmp_path / f"{device}.csv"
        monitor = fastclip.NormMonitor(net, optimizer, every=2, max_norm=0.5, csv=path)
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).to(device)
        for step in range(8):
            if step == 2 and device == "cuda":  # kernels are compiled by now
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            optimizer.zero_grad()
            net(x).square().mean().backward()
            monitor.observe(fastclip.clip_grad_norm_(net.parameters(), 0.5))
            optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
        monitor.close()
        assert [row["step"] for row in monitor.history] == [2, 4, 6, 8]
        rows[device] = monitor.history
        with path.open() as file:
            assert len(list(csv.DictReader(file))) == 4
    for cpu, cuda in zip(rows["cpu"], rows["cuda"], strict=True):
        assert cuda.pop("worst_parameter") == cpu.pop("worst_parameter")
        assert cuda == pytest.approx(cpu, rel=1e-4)
