"""The optimizer over the groups of `fastclip.param_groups`, and parameters frozen for a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fastclip
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.network.model import TransFuse

BACKBONES = ("resnet.*", "transformer.*")
NORMS = nn.modules.batchnorm._BatchNorm


def build_groups(model: TransFuse, config: TrainConfig) -> fastclip.ParamGroups:
    """What decays, at which learning rate each parameter trains, and what is frozen.

    Raises:
        ValueError: a pattern of --freeze matches nothing, or everything.
    """
    scaled = config.backbone_lr_scale != 1.0
    with warnings.catch_warnings():
        # Sharding takes marks off parameters; a TransFuse names those that do not decay instead.
        warnings.filterwarnings("ignore", "param_groups: if your model sets _no_weight_decay")
        return fastclip.param_groups(
            model,
            lr=config.lr,
            weight_decay=config.weight_decay,
            frozen=config.freeze,
            lr_scale=dict.fromkeys(BACKBONES, config.backbone_lr_scale) if scaled else None,
            layer_decay=config.layer_decay,
        )


def build_optimizer(groups: fastclip.ParamGroups, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, Adam as published, or AdamW; fused, so that clipping goes into the step.

    But for SGD of a sharded network, which torch has not fused.
    """
    made: torch.optim.Optimizer
    if config.optimizer == "sgd":
        fused = not config.fsdp
        made = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    elif config.optimizer == "adamw":
        made = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
    else:
        made = torch.optim.Adam(groups, lr=config.lr, betas=(0.5, 0.999), fused=True)
    keep_peaks(made)
    return made


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state that may be of a run that was sharded, where this one is not, or the reverse.

    Each steps in its own way, fused or not. torch's fused steps read a parameter and its state by
    their places in memory, and sharded parameters are contiguous where plain ones have the channels
    last.
    """
    fused = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, own in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = own
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def keep_peaks(optimizer: torch.optim.Optimizer) -> None:
    """Note the learning rate of groups that are new as their peak, `initial_lr` as torch has it."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each group its peak learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def thaw(
    groups: fastclip.ParamGroups, optimizer: torch.optim.Optimizer, patterns: tuple[str, ...]
) -> list[str]:
    """Let the frozen parameters train; returns their names."""
    # cls_token is frozen by the network, not by --freeze, and stays so.
    names: list[str] = groups.unfreeze(optimizer, patterns)
    keep_peaks(optimizer)
    _begin_momentum(optimizer)
    return names


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum of 0 for what trains from now on: torch's fused SGD takes all buffers or none."""
    momentum = "momentum_buffer"
    if any(momentum in state for state in optimizer.state.values()):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault(momentum, torch.zeros_like(parameter))


def train_mode(model: nn.Module) -> None:
    """`model.train()`, but for batch norms all of whose parameters are frozen."""
    model.train()
    for module in model.modules():
        own: list[Any] = list(module.parameters(recurse=False))
        if isinstance(module, NORMS) and own and not any(p.requires_grad for p in own):
            module.eval()
