"""Flags about optimization: budget, optimizer, schedule, clipping, precision, augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastclip.transfuse.config.checks import finite, require, require_at_least, require_positive


@dataclass(kw_only=True)
class OptimizationConfig:
    """How long training lasts, and what one step does."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = (
        *("batch_size", "lr", "optimizer", "weight_decay", "schedule", "warmup_steps"),
        *("clip_norm", "precision"),
    )

    epochs: int = 25
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, if that comes before the last epoch."""
    max_time: float | None = None
    """Stop after this many minutes, if that comes first.
    The decay is then completed by the clock; the last validation and the pictures come on top."""
    batch_size: int = 16
    """Images per step; an incomplete last batch is left out."""
    lr: float = 7e-5
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam: betas 0.5, 0.999, as published. adamw: betas 0.9, 0.999."""
    weight_decay: float = 0.0
    """Weight decay of matrices and filters; norms, biases and pos_embed never decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or down to zero at the end."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    clip_norm: float = 2.0
    """Gradient norm to clip to, at every step; inf never clips."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16 runs the network under autocast; loss, gradients and weights stay float32.
    auto takes bf16 where the device computes in it."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 1, "epochs", "batch_size")
        require_at_least(self, 0, "warmup_steps")
        require_positive(self, "max_steps", "max_time")
        require(self, "lr", 0 < self.lr < math.inf, "positive and finite")
        require(self, "clip_norm", self.clip_norm > 0, "more than 0 (inf never clips)")
        require(self, "weight_decay", finite(self.weight_decay), "0 or more")


@dataclass(kw_only=True)
class AugmentationConfig:
    """How training images are varied, and by how many processes."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ("augment",)

    augment: bool = True
    """Shift, scale, rotation, colour jitter and flips of the training images."""
    workers: int = 0
    """Processes that augment; the images themselves are kept decoded in memory."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 0, "workers")
