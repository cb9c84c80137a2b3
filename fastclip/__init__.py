"""Fused kernels around a PyTorch training step: clipping, structure loss, norms, groups."""

from fastclip.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from fastclip.groups import ParamGroups, param_groups
from fastclip.losses import StructureLoss, structure_loss

__version__ = "0.1.0"

__all__ = [
    "ParamGroups",
    "StructureLoss",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "param_groups",
    "structure_loss",
]
