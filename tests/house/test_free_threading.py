"""Threads that list, clip and measure at the same time, while others change the lists.

Under any Python; what these find comes out where there is no GIL to hold the others back.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastclip
from fastclip import native

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}"),
]
WITH_GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")
THREADS = 4
ROUNDS = 200


def in_threads(*works: Callable[[], None]) -> None:
    """Calls all at the same time; raises what the first of them raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def parameters(count: int, value: float = 1.0, numel: int = 16) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(numel)) for _ in range(count)]
    for p in made:
        p.grad = torch.full((numel,), value)
    return made


@pytest.mark.skipif(WITH_GIL, reason="this Python has a GIL")
def test_the_import_leaves_the_gil_off():
    code = "import sys, fastclip; fastclip.native.require(); print(sys._is_gil_enabled())"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_threads_clip_gradients_of_their_own():
    def work() -> None:
        params = parameters(50)
        for _ in range(ROUNDS):
            norm = fastclip.clip_grad_norm_(params, 1.0)
            assert norm.item() == pytest.approx(800**0.5)
            assert params[7].grad[3].item() == pytest.approx(800**-0.5, rel=1e-5)
            for p in params:
                p.grad.fill_(1.0)

    in_threads(*[work] * THREADS)


@pytest.mark.parametrize("call", ["clip", "value", "units", "norm", "listing"])
def test_a_list_that_changes_meanwhile(call):
    """A call sees the list as it was at one moment, or while it is changed: never what is freed."""
    shared: list[nn.Parameter] = parameters(64)
    calls: dict[str, Callable[[], Any]] = {
        "clip": lambda: fastclip.clip_grad_norm_(shared, 1e9),
        "value": lambda: fastclip.clip_grad_value_(shared, 1e9),
        "units": lambda: fastclip.AGC(clipping=1e9).clip_(shared),
        "norm": lambda: fastclip.get_total_norm([p.grad for p in shared]),
        "listing": lambda: (native.require().TensorList(shared, True), None)[1],
    }
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            shared.clear()
            shared.extend(parameters(64))
            del shared[10:20]
            shared.insert(3, shared.pop())

    def work() -> None:
        try:
            for _ in range(ROUNDS):
                found = calls[call]()
                if found is not None:  # 16 ones in each of the gradients that it saw
                    seen = found.item() ** 2 / 16
                    assert seen == pytest.approx(round(seen), abs=1e-3)
                    assert seen <= 64
        finally:
            done.set()

    in_threads(change, *[work] * (THREADS - 1))


class Placement:
    """Compared by Python code, in which another thread may come in between."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and self.dim == other.dim

    __hash__ = None


class Spec:
    def __init__(self, mesh: object, placements: tuple[object, ...]) -> None:
        self.mesh, self.placements = mesh, placements


class Sharded:
    """What the core reads of a DTensor."""

    def __init__(self, mesh: object, placements: tuple[object, ...]) -> None:
        self._local_tensor = torch.ones(2)
        self._spec = Spec(mesh, placements)


@pytest.fixture
def threads_that_alternate():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_threads_sort_gradients_of_many_layouts(threads_that_alternate):
    """Of more layouts than are remembered, so that these are forgotten meanwhile."""
    core, mesh, layouts = native.require(), object(), 300

    def work() -> None:
        for n in range(5):
            items = [Sharded(mesh, (Placement(i % layouts),)) for i in range(2 * layouts - n)]
            groups, freed, error = core.sort_tensors(items, False, Sharded)
            assert (freed, error) == ([], None)
            assert len(groups) == layouts
            for i, group in enumerate(groups):
                assert group[1] == (Placement(i),)
                assert list(group[2]) == [j for j in (i, i + layouts) if j < len(items)]

    in_threads(*[work] * THREADS)


def test_threads_take_losses_and_norms():
    logits = torch.linspace(-3, 3, 2 * 40 * 40).reshape(2, 1, 40, 40)
    mask = (logits > 1).float()
    expected = fastclip.structure_loss(logits, mask).item()

    def losses() -> None:
        for _ in range(ROUNDS // 4):
            x = logits.clone().requires_grad_()
            loss = fastclip.structure_loss(x, mask)
            loss.backward()
            assert loss.item() == pytest.approx(expected, rel=1e-6)

    def norms() -> None:
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10)))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for _ in range(ROUNDS // 4):
            found = fastclip.grad_norms(model)
            assert found.total == pytest.approx((10 * 72) ** 0.5)

    in_threads(losses, norms, losses, norms)
