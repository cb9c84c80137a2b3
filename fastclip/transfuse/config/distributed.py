"""Flags about training in several processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fastclip.transfuse.config.checks import require


@dataclass(kw_only=True)
class DistributedConfig:
    """Several processes: torchrun --nproc-per-node=N -m fastclip train; of no effect in one."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ("sync_bn",)

    sync_bn: bool = False
    """Batch norms see the batch of all processes, as one process would; else each sees its own
    part, and the running statistics are those of process 0."""
    ddp_timeout: float = 10.0
    """Minutes to wait for a process that does not answer; then all of them end."""

    fsdp: bool = False
    """Refused: the weights of a TransFuse are replicated, and fit any GPU that trains one."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        if self.fsdp:
            raise ValueError(
                "--fsdp: the weights of a TransFuse are replicated, not sharded; with gradients "
                "and optimizer they take less than 3 GB. Leave it out and start torchrun; to "
                "shard a network of your own, see examples/fsdp2.py"
            )
        valid = 0 < self.ddp_timeout < math.inf
        require(self, "ddp_timeout", valid, "more than 0 and finite")
