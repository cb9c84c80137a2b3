"""Batch norms whose statistics are those of the batch of all processes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class _Sum(torch.autograd.Function):
    """The sum over processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(nn.BatchNorm2d):
    """torch.nn.SyncBatchNorm for processors, which that one does not know.

    Every process has the same number of images. In eval mode it is the batch norm that it was.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W], any float -> the same; sums are float32 at least."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _sum(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        self._keep(mean, variance, count)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (count / max(1, count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total


def synchronised(model: M, device: torch.device) -> M:
    """The same network with the same parameters; its batch norms see the batch of all processes."""
    if device.type != "cpu":
        made: M = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return made
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _converted(child))
    return model


def _converted(norm: nn.BatchNorm2d) -> SyncBatchNorm:
    made = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    made.weight, made.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(made, name, buffer)
    return made.train(norm.training)
