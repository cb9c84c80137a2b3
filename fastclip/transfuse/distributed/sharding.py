"""A network in parts over processes, by torch's fully_shard: cut, put together, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fastclip.transfuse.network.model import TransFuse


def shard(model: TransFuse, mesh: DeviceMesh) -> None:
    """Leave each process its part of every parameter, along the first dimension.

    The weights of a block are gathered when it runs, and let go after it: those of the root too,
    so that between steps every parameter is a DTensor.
    """
    model.to(memory_format=torch.contiguous_format)  # fully_shard takes no other
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _blocks(model: TransFuse) -> list[nn.Module]:
    """What the forward pass calls one after the other; stems, position and norm are left."""
    resnet: Any = model.resnet
    rest = [
        child for name, child in model.named_children() if name not in ("resnet", "transformer")
    ]
    decoder = [child for child in rest if any(True for _ in child.parameters())]
    return [*model.transformer.blocks, resnet.layer1, resnet.layer2, resnet.layer3, *decoder]


def whole(state: Any, keep: bool) -> Any:
    """A state in nested dicts, its DTensors as tensors on the CPU. All processes call it together.

    Args:
        state: of a network or an optimizer.
        keep: whether this process wants it; the others get None for each DTensor.
    """
    if isinstance(state, Mapping):
        return {name: whole(value, keep) for name, value in state.items()}
    if not isinstance(state, DTensor):
        return state
    full = state.full_tensor()
    # A copy: the gathered tensor may be a view of more, all of which a file would hold.
    return full.to("cpu", copy=True) if keep else None


def parts(weights: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Of whole weights what this process holds of them; every process has them whole."""
    own = model.state_dict()
    return {name: _part(value, own.get(name)) for name, value in weights.items()}


def optimizer_parts(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The same of an optimizer's state, whose keys count the parameters of all its groups."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = {
        index: {name: _part(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": held}


def _part(value: Any, like: object) -> Any:
    """`value` as `like` is divided; itself where it is no such tensor, which loading reports."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def unsharded(model: TransFuse) -> TransFuse:
    """A plain network of the same weights, whole in every process; buffers are the same tensors."""
    weights = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in model.state_dict().items()
    }
    with torch.device("meta"):  # draws no random numbers, and takes no memory
        made = TransFuse(model.arch, model.num_classes)
    made.load_state_dict(weights, assign=True)
    return made.to(memory_format=torch.channels_last)
