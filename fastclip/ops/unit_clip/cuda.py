"""`unit_clip` by the CUDA kernel, csrc/cuda/unit_clip.cu: pairs on any number of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops.grad_norm import backends


def clip_units_(parameters: Sequence[Tensor], clipping: float, eps: float) -> list[Tensor]:
    """Clips what the kernel takes, a launch for each device; returns the parameters left to do."""
    core = native.core
    if core is None or not core.build_info()["cuda"]:
        return list(parameters)
    written, rest = core.cuda_clip_units(parameters, clipping, eps, backends.cuda_why_not)
    torch.autograd.graph.increment_version(written)
    return list(rest)
