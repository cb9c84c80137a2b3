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
    """Each process holds a part of weights, gradients and optimizer (torch's fully_shard), not all
    of them: for networks that do not fit. Checkpoints are those of a run without it."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        if self.fsdp:
            _require_shardable(self)
        valid = 0 < self.ddp_timeout < math.inf
        require(self, "ddp_timeout", valid, "more than 0 and finite")


def _require_shardable(config: object) -> None:
    """Raise ValueError where another flag is given that a sharded network does not train with."""
    refused = {
        "compile": "the forward pass gathers and lets go of weights, which is not compiled here",
        "freeze_epochs": "what trains is settled when the network is divided; --freeze alone can",
        "reference_ops": "compare with torch's own functions in one process",
    }
    for name, reason in refused.items():
        if getattr(config, name, None):
            flag = name.replace("_", "-")
            raise ValueError(f"--fsdp does not go with --{flag}: {reason}. Leave one of them out")
    if getattr(config, "precision", "fp32") == "fp16":
        raise ValueError(
            "--fsdp does not go with --precision fp16: a loss scale over sharded gradients is not "
            "supported. Give bf16 or fp32"
        )
