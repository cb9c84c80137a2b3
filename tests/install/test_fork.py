"""Children of a process that has clipped on several threads, and threads that come and go."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastclip import native

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(native.core is None, reason="no native core"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]
WORK = """
import multiprocessing, os, sys, torch, fastclip
from fastclip import native

# Made here: torch's own loops hang in a child that fork has made.
VALUES = [torch.ones(8_000_000)]
LOGITS = torch.zeros(16, 1, 192, 256, requires_grad=True)
MASK = torch.ones(16, 1, 192, 256)
WEIGHT = torch.nn.Parameter(torch.ones(64, 50_000))
WEIGHT.grad = torch.ones(64, 50_000)

def work(_=None):
    norm = fastclip.get_total_norm(VALUES).item()
    loss = fastclip.structure_loss(LOGITS, MASK).item()
    fastclip.AGC(0.5).clip_([WEIGHT])
    return norm, loss, native.core.thread_limits()["used"]

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = work()
    assert expected[-1] == 2, expected
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        for got in pool.map(work, range(2)):
            assert got[:-1] == expected[:-1], (got, expected)
            print("child", got[-1])
    assert work() == expected
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert work() == (*expected[:-1], min(threads, len(os.sched_getaffinity(0))))
    print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_a_process_that_used_threads(tmp_path, method):
    (tmp_path / "work.py").write_text(WORK)
    done = subprocess.run(
        [sys.executable, "work.py", method],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines.count("child 2") == 2 or method == "spawn"  # a child has a pool of its own
    assert lines[-2] == "done"
