"""What the trainer's tests share: a finished run of one step, `fastclip evaluate`, no launcher.

What another extra may be missing for is imported in the fixtures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step."""
    from short_run import short

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


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs `fastclip evaluate`; returns what it writes as JSON."""
    from fastclip.cli import main

    def run(*arguments: object, code: int = 0) -> dict[str, Any]:
        file = tmp_path / "found.json"
        command = ["evaluate", *map(str, arguments), "--json", str(file)]
        assert main(command) == code
        return json.loads(file.read_text()) if code == 0 else {}

    return run


@pytest.fixture
def sample(tmp_path: Path) -> tuple[str, ...]:
    """Arguments of a checkpoint on six pairs of twice the network's size."""
    from evaluated import checkpoint
    from pairs import SIZE, gray, write
    from PIL import Image

    def twice(array: np.ndarray) -> Image.Image:
        picture = gray(array) if array.dtype == bool else Image.fromarray(array)
        return picture.resize((2 * SIZE[1], 2 * SIZE[0]), Image.Resampling.NEAREST)

    write(tmp_path / "set", count=6, draw=twice, draw_image=twice)
    file = checkpoint(tmp_path / "one.pt")
    return ("--checkpoint", str(file), "--data", str(tmp_path / "set"), "--split", "all")
