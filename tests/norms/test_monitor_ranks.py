"""Monitors of two processes that train one model, over gloo: all of ranks_worker.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("ranks_worker.py")
ROOT = str(WORKER.parents[2])

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

from ranks_worker import CHECKS  # noqa: E402  (imports what may not be there)


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> list[dict[str, str]]:
    """Of each rank, what each check raised."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", str(WORKER), str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=200)
    files = [folder / f"{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_on_every_rank(errors, check):
    for rank, found in enumerate(errors):
        assert check in found, "a check before this one failed, or the rank hangs"
        assert not found[check], f"rank {rank}: {found[check]}"
