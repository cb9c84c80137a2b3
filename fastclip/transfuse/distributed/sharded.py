"""Several processes as one run of which each holds a part of the network: --fsdp."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from fastclip.transfuse.distributed import sharding
from fastclip.transfuse.distributed.group import Group
from fastclip.transfuse.distributed.launch import Launch
from fastclip.transfuse.network.model import TransFuse


class ShardedGroup(Group):
    """The processes of a launch; weights, gradients and optimizer lie in parts over them.

    Args and errors are those of `Group`.
    """

    sharded = True

    def __init__(self, launch: Launch, device: str, timeout_s: float) -> None:
        super().__init__(launch, device, timeout_s)
        self.mesh = init_device_mesh(self._device.type, (self.world,))

    def replicate(self, model: nn.Module) -> None:
        for value in model.state_dict().values():
            if not isinstance(value, DTensor):  # of which each process has its own part
                dist.broadcast(value, src=0)

    def divide(self, model: TransFuse) -> None:
        sharding.shard(model, self.mesh)

    def parallel(self, model: nn.Module, sync_bn: bool) -> nn.Module:
        return model

    def accumulating(self, network: Any, last: bool) -> AbstractContextManager[object]:
        # Each batch's gradients are summed over processes: kept back they would be whole in each.
        return nullcontext()

    def complete(self, model: TransFuse) -> TransFuse:
        self.replicate(model)
        return sharding.unsharded(model)

    def whole(self, state: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = sharding.whole(state, self.main)
        return made

    def parts(self, weights: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
        return sharding.parts(weights, model)

    def optimizer_parts(
        self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer
    ) -> Mapping[str, Any]:
        return sharding.optimizer_parts(state, optimizer)
