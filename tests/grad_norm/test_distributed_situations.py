"""Two ranks whose gradients differ in what lies on them all finish, or all raise; none waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("situations_worker.py")
ROOT = str(WORKER.parents[2])

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str) -> None:
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", str(WORKER), str(folder), *arguments]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=240, check=True)


def test_all_ranks_finish_or_all_raise(tmp_path):
    run(tmp_path)
    one, other = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert len(one) == len(other) == 7 * 7 * 10
    assert [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]] == []
    kinds = {found for *_, found in one}
    assert kinds == {"ok", "raised"}, [row for row in one if row[-1] not in ("ok", "raised")]
    for first, second, call, found in one:
        bad = "freed" in (first, second) or ("a_nan" in (first, second) and call == "clip, finite")
        assert found == ("raised" if bad else "ok"), (first, second, call)


@pytest.mark.parametrize("how", ["die", "hang"])
def test_a_rank_that_is_gone_is_an_error_within_the_timeout(tmp_path, how):
    run(tmp_path, how)
    error, seconds = json.loads((tmp_path / "rank_0.json").read_text())
    assert error
    assert seconds < 15
