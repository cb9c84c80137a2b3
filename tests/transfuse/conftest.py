"""What the trainer's tests share: a finished run of one step, and no launcher around them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step."""
    from short_run import short  # here: another extra may be missing

    from fastclip.transfuse.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("run")
    assert Trainer(short(folder, max_steps=1)).fit() == 0
    return folder


@pytest.fixture
def out(one_step: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(one_step, tmp_path / "run"))


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves may run under a launcher."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
