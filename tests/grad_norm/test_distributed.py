"""Clipping DTensors over gloo, in 2 and in 4 processes, which run all of distributed_worker.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("distributed_worker.py")
ROOT = str(WORKER.parents[2])

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

from distributed_worker import CHECKS, WORLDS  # noqa: E402  (imports what may not be there)


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[int, list[dict[str, str]]]:
    """Of each world size and rank, what each check raised."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", str(WORKER), str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=300)
    return {
        world: [json.loads((folder / f"{world}_{rank}.json").read_text()) for rank in range(world)]
        for world in WORLDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("check", CHECKS)
def test_on_every_rank(errors, check, world):
    for rank, found in enumerate(errors[world]):
        assert check in found, "a check before this one failed"
        assert not found[check], f"rank {rank}: {found[check]}"


def test_importing_fastclip_imports_no_dtensor():
    code = "import sys, fastclip; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, check=True)
