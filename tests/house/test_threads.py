"""The core's threads: how many, and that nothing in a process's life stops or breaks them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fastclip
from fastclip import native, report

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}"),
]
MANY = 4_000_000  # float32 values: enough for several threads
needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks"
)


def limits(root: Path) -> dict[str, float]:
    return native.require().thread_limits(str(root))


def control_group(root: Path, line: str, files: dict[str, str]) -> Path:
    """A system in which this process is in one control group."""
    for name, text in {"proc/self/cgroup": line, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("line", "files", "quota"),
    [
        ("0::/", {}, 0),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 0),
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 0),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        (
            "0::/a/b",
            {
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "200000 100000",
            },
            2,
        ),
        ("0::/../x", {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        (
            "4:cpu,cpuacct:/d\n0::/",
            {
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            "4:cpu,cpuacct:/d",
            {
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000",
            },
            0,
        ),
        ("4:cpuset:/d", {"sys/fs/cgroup/cpu/d/cpu.max": "100000 100000"}, 0),
        ("nonsense", {"sys/fs/cgroup/cpu.max": "nonsense"}, 0),
    ],
)
def test_the_quota_of_a_container(tmp_path, line, files, quota):
    assert limits(control_group(tmp_path, line, files))["quota"] == quota


def run(code: str, timeout: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_affinity
def test_no_more_threads_than_processors_allowed():
    code = """
import os, torch
from fastclip import native, report
torch.set_num_threads(3)
allowed = len(os.sched_getaffinity(0))
assert native.core.thread_limits()["used"] == min(3, allowed)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
limits = native.core.thread_limits()
assert (limits["torch"], limits["affinity"], limits["used"]) == (3, 1, 1), limits
assert "threads: 1: this process may run on 1 processors" in report.report()
"""
    run(code)


def test_the_report_says_who_decided():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert "threads: 1: torch.get_num_threads() is 1" in report.report()
    finally:
        torch.set_num_threads(before)


def test_many_python_threads_at_once_while_the_number_of_threads_changes():
    tensors = [torch.full((MANY // 4,), float(i + 1)) for i in range(4)]
    expected = fastclip.get_total_norm(tensors)
    found: list[torch.Tensor] = []

    def work(threads: int) -> None:
        torch.set_num_threads(threads)  # of this Python thread
        for _ in range(20):
            found.append(fastclip.get_total_norm(tensors))

    workers = [threading.Thread(target=work, args=(1 + i % 3,)) for i in range(6)]
    before = torch.get_num_threads()
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(before)
    assert len(found) == 120
    assert all(torch.equal(norm, expected) for norm in found)


def test_a_second_copy_of_the_core(tmp_path):
    file = Path(native.require().__file__ or "")
    copy = tmp_path / file.name
    shutil.copy(file, copy)
    spec = importlib.util.spec_from_file_location("second._native", copy)
    assert spec is not None
    assert spec.loader is not None
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    native.bind(second)
    tensors = [torch.ones(MANY)]
    norms: list[float] = []

    def work() -> None:
        for _ in range(20):
            norms.append(second.clip_grads(tensors, False, 2.0, None, False).item())

    other = threading.Thread(target=work)
    other.start()
    for _ in range(20):
        norms.append(fastclip.get_total_norm(tensors).item())
    other.join()
    assert set(norms) == {MANY**0.5}


@pytest.mark.skipif(sys.platform != "linux", reason="torch's team is borrowed on Linux alone")
def test_the_main_thread_runs_on_the_threads_that_torch_has():
    """Others of our own would fight those for the processors."""
    code = f"""
import os, threading, torch, fastclip
torch.set_num_threads(2)
tensors = [torch.ones({MANY})]  # on torch's threads
count = lambda: len(os.listdir("/proc/self/task"))
norm = lambda: fastclip.get_total_norm(tensors).item()
found = [count()]
norm()
found.append(count())
thread = threading.Thread(target=norm)
thread.start()
thread.join()
found.append(count())
print(found[1] - found[0], found[2] > found[1])
"""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    assert run(code) == "0 True"  # another Python thread's call makes one


@pytest.mark.skipif(sys.platform != "linux", reason="torch's team is borrowed on Linux alone")
def test_threads_that_openmp_binds(monkeypatch):
    """Each to a processor: the main thread's is not all that the process has."""
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    code = """
import os, torch
from fastclip.native import core
torch.ones(10_000_000).sum()  # binds, if nothing has
print(core.thread_limits()["affinity"], len(os.sched_getaffinity(0)))
"""
    processors = len(os.sched_getaffinity(0))
    if processors < 2:
        pytest.skip("needs two processors")
    assert run(code) == f"{processors} 1"


@pytest.mark.slow
def test_a_process_that_ends_in_the_middle_of_a_call():
    """Of tensors so large that nearly all of a call is in the core.

    A process that ends while another thread is in torch's own functions is aborted, with or without
    fastclip: "terminate called without an active exception".
    """
    code = f"""
import threading, time, torch, fastclip
tensors = [torch.ones({MANY})] * 20
def work():
    while True:
        fastclip.get_total_norm(tensors)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
print("ends")
"""
    for _ in range(5):
        assert run(code) == "ends"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_in_the_middle_of_a_call():
    """The locks of the pool may be held then, by threads that the child does not have."""
    code = f"""
import os, signal, threading, torch, fastclip
tensors = [torch.ones({MANY})]
fastclip.get_total_norm(tensors).item()  # torch finds out things of its own in its first calls
def work():
    while True:
        fastclip.get_total_norm(tensors)
threading.Thread(target=work, daemon=True).start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that hangs
        os._exit(0 if fastclip.get_total_norm(tensors).item() == {MANY}**0.5 else 1)
    assert os.waitpid(child, 0)[1] == 0
print("done")
"""
    assert run(code) == "done"


def test_forked_in_the_middle_of_the_first_call():
    """What the core finds out once, by another thread, must not be half-way in a child."""
    code = f"""
import os, signal, threading, torch
from fastclip.native import core
tensors = core.TensorList([torch.ones({MANY})], False)
def norm():  # of the core alone: torch finds out things of its own
    return core.grad_norm(tensors, 2.0)
def expect(child):
    assert os.waitpid(child, 0)[1] == 0
for _ in range(60):
    first = os.fork()  # in which nothing of the core has run
    if first == 0:
        signal.alarm(20)
        threading.Thread(target=norm, daemon=True).start()
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends a child that hangs
            os._exit(0 if norm() == {MANY}**0.5 else 1)
        os._exit(os.waitpid(child, 0)[1] != 0)
    expect(first)
print("done")
"""
    assert run(code) == "done"


@pytest.mark.slow
def test_a_subinterpreter_beside():
    """One computes while the main one clips, and ends; torch itself cannot be imported in one."""
    pytest.importorskip("_xxsubinterpreters")
    code = f"""
import threading, _xxsubinterpreters as interpreters, torch, fastclip
tensors = [torch.ones({MANY})]
norm = fastclip.get_total_norm(tensors)
other = interpreters.create()
work = threading.Thread(target=interpreters.run_string, args=(other, "sum(range(3_000_000))"))
work.start()
while work.is_alive():
    assert torch.equal(fastclip.get_total_norm(tensors), norm)
interpreters.destroy(other)
assert torch.equal(fastclip.get_total_norm(tensors), norm)
print("done")
"""
    assert run(code) == "done"
