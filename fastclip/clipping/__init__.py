"""Gradient clipping: torch's functions, adaptive limits, inside the step, inside others' code."""

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

__all__ = [
    "AGC",
    "AutoClip",
    "ZClip",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_in_step_",
    "clip_grads_with_norm_",
    "clip_groups_",
    "clip_tensors_",
    "get_total_norm",
    "patch_torch",
    "patched_torch",
    "unpatch_torch",
    "unscale_and_clip_grad_norm_",
]
