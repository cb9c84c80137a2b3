"""From gradients to weights: the loss scale of float16, clipping, the optimizer's step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import fastclip
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.optimization.clippers import limit_of, make_clipper
from fastclip.transfuse.optimization.phases import Phase, unmeasured

SMALLEST_SCALE = 1e-3  # a loss scale below finds float16 gradients that no scale would save


class Update:
    """Takes the gradients of `backward` into the weights, once a step.

    A step whose gradients are not finite changes no weight and no state of the optimizer; nothing
    waits for a GPU to know it, but for AutoClip and ZClip, whose statistics live on the host.

    Args:
        optimizer: fused; or not, where torch has no fused one of sharded parameters.
        model: whose parameters it holds.
        config: the flags of clipping.
        device: the parameters'.
        fp16: whether the loss is scaled.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: TransFuse,
        config: TrainConfig,
        device: torch.device,
        fp16: bool,
    ) -> None:
        self.optimizer, self.reference = optimizer, config.reference_ops
        self.fused = all(group.get("fused") for group in optimizer.param_groups)
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.limit = limit_of(config)
        self.clipper = make_clipper(config, model)
        self.phase: Phase = unmeasured

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, 0-d float32."""
        self.scaler.scale(loss).backward()

    def step(self) -> Tensor:
        """Clip and step; returns the norm of the unscaled gradients before, 0-d."""
        return _plain(self._step())

    def _step(self) -> Tensor:
        if self.limit is None or self.reference or not self.fused:
            return self._one_after_the_other()
        with self.phase("clip and optimizer"):
            if not self.scaler.is_enabled():
                return fastclip.clip_grads_in_step_(self.optimizer, self.limit)
            total = fastclip.unscale_and_clip_grad_norm_(self.scaler, self.optimizer, self.limit)
            self._scaled_step()
        return total

    def _one_after_the_other(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        with self.phase("clip"):
            if self.scaler.is_enabled():
                self.scaler.unscale_(self.optimizer)
            if self.clipper is not None:
                total = _plain(self.clipper.clip_(parameters))
            else:
                assert self.limit is not None
                ops: Any = torch.nn.utils if self.reference else fastclip
                total = _plain(ops.clip_grad_norm_(parameters, self.limit))
        with self.phase("optimizer"):
            if self.scaler.is_enabled():
                self._scaled_step()
            elif self.reference or not self.fused:
                _step_if_finite(self.optimizer, total)
            else:  # a norm above 0 is above 0: one that is not finite skips the step
                skip = torch.where(total.isfinite(), math.inf, 0.0)
                fastclip.clip_grads_in_step_(self.optimizer, math.inf, skip_above=skip)
        return total

    def _scaled_step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def check(self) -> None:
        """Raise RunError where float16 has lost all gradients; waits for the device."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise RunError(
                f"--precision fp16: gradients are not finite at a loss scale of "
                f"{self.scaler.get_scale():.2g} either; try bf16 or a lower --lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """Of the loss scale and of an adaptive clipper."""
        clipper = self.clipper.state_dict() if self.clipper is not None else {}
        return {"scaler": self.scaler.state_dict(), "clipper": clipper}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.clipper is not None:
            self.clipper.load_state_dict(state["clipper"])


def _step_if_finite(optimizer: Any, total: Tensor) -> None:
    """A step that a fused optimizer on a device skips there, as GradScaler has it."""
    if total.device.type == "cpu" or not optimizer.param_groups[0]["fused"]:
        if total.isfinite():
            optimizer.step()
        return
    optimizer.grad_scale, optimizer.found_inf = None, (~total.isfinite()).float()
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def _plain(total: Tensor) -> Tensor:
    """The norm of sharded gradients is a DTensor, and all processes ask for its value together."""
    full = getattr(total, "full_tensor", None)
    return total if full is None else full()
