"""What the tests of `fastclip evaluate` share: checkpoints that were not trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastclip.transfuse import create_model
from fastclip.transfuse.storage.checkpoint import FORMAT


def checkpoint(file: Path, seed: int = 0, data: str = "set", **config: Any) -> Path:
    """A network that was not trained, dressed as a checkpoint of a run."""
    torch.manual_seed(seed)
    weights = create_model("transfuse_t").state_dict()
    settings = {"data": data, "model": "transfuse_t", "size": "32x48", **config}
    content = {"format": FORMAT, "model": "transfuse_t", "weights": weights, "config": settings}
    torch.save(content, file)
    return file


Run = Callable[..., dict[str, Any]]  # `measured` of conftest.py
