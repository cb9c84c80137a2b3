"""Fused kernels around a PyTorch training step: clipping, structure loss, norms, groups."""

from fastclip.adaptive import AGC, AutoClip, ZClip
from fastclip.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from fastclip.groups import ParamGroups, param_groups
from fastclip.losses import StructureLoss, structure_loss
from fastclip.monitor import NormMonitor
from fastclip.norms import NormReport, grad_norms, param_norms
from fastclip.patch import patch_torch, patched_torch, unpatch_torch
from fastclip.step import clip_grads_in_step_, unscale_and_clip_grad_norm_

__version__ = "0.1.0"

__all__ = [
    "AGC",
    "AutoClip",
    "NormMonitor",
    "NormReport",
    "ParamGroups",
    "StructureLoss",
    "ZClip",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_in_step_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "grad_norms",
    "param_groups",
    "param_norms",
    "patch_torch",
    "patched_torch",
    "structure_loss",
    "unpatch_torch",
    "unscale_and_clip_grad_norm_",
]
