"""Fused kernels around a PyTorch training step: clipping, structure loss, norms, groups."""

from fastclip import distributed
from fastclip.clipping.adaptive.agc import AGC
from fastclip.clipping.adaptive.autoclip import AutoClip
from fastclip.clipping.adaptive.zclip import ZClip
from fastclip.clipping.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    clip_tensors_,
    get_total_norm,
)
from fastclip.clipping.groups import clip_groups_
from fastclip.clipping.patch import patch_torch, patched_torch, unpatch_torch
from fastclip.clipping.step import clip_grads_in_step_, unscale_and_clip_grad_norm_
from fastclip.groups.build import param_groups
from fastclip.groups.report import ParamGroups
from fastclip.losses import StructureLoss, structure_loss
from fastclip.norms.monitor.monitor import NormMonitor
from fastclip.norms.report import NormReport, grad_norms, param_norms
from fastclip.norms.stats import TensorStats
from fastclip.version import __version__

__all__ = [
    "AGC",
    "AutoClip",
    "NormMonitor",
    "NormReport",
    "ParamGroups",
    "StructureLoss",
    "TensorStats",
    "ZClip",
    "__version__",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_in_step_",
    "clip_grads_with_norm_",
    "clip_groups_",
    "clip_tensors_",
    "distributed",
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
