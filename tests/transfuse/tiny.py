"""Runs of a few seconds: sixteen synthetic images of 32x32 in batches of four."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.training.step import Learner


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Images of 32x32 are too small to share out, and threads that wait disturb other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(out: Path, **changes: Any) -> TrainConfig:
    """Four steps an epoch, two epochs."""
    config = TrainConfig(
        data="synthetic",
        model="transfuse_t",
        size="32x32",
        out=out,
        epochs=2,
        batch_size=4,
        lr=1e-3,
        optimizer="adamw",
        weight_decay=0.05,
        schedule="cosine",
        warmup_steps=2,
        synthetic_images=16,
        device="cpu",
    )
    return replace(config, **changes)


def learner(out: Path, **changes: Any) -> Learner:
    """What one step changes, of seed 0."""
    torch.manual_seed(0)
    config = tiny(out, **changes)
    config.check()
    return Learner(create_model("transfuse_t"), config)


def batch(count: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [count, 3, 32, 32] and masks of a square, [count, 1, 32, 32]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(count, 1, 32, 32, dtype=torch.uint8)
    masks[:, :, 8:20, 4:16] = 255
    return images, masks
