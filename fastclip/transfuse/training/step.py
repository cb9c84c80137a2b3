"""One step of training: a batch in, changed weights out."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from fastclip.transfuse.config.checks import autocast_dtype
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.distributed.processes import Processes
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.optimization import groups
from fastclip.transfuse.optimization.phases import Phase, unmeasured
from fastclip.transfuse.optimization.update import Update
from fastclip.transfuse.safety.bad_steps import BadSteps
from fastclip.transfuse.training.objective import HEAD_WEIGHTS, head_losses
from fastclip.transfuse.training.reference import reference_head_losses


class Learner:
    """A network and all that a step of its training changes.

    Args:
        model: on the device that trains.
        config: checked.
        bad_steps: looks at each step; None where nobody does.
        processes: that take this step together, each with its share of the images.

    Attributes:
        evaluated: what is validated and saved: the average of the weights with --ema, else `model`.
    """

    def __init__(
        self,
        model: TransFuse,
        config: TrainConfig,
        bad_steps: BadSteps | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.config, self.bad_steps = model, config, bad_steps
        self.processes = processes or Processes()
        self.device = next(model.parameters()).device
        self.dtype = autocast_dtype(config.precision, self.device)
        names = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        self.precision = names[self.dtype]
        self.average: ModelEmaV3 | None = None
        if config.ema is not None:
            # torch's foreach takes no DTensors mixed with running statistics, which are plain.
            foreach = not self.processes.sharded
            self.average = ModelEmaV3(
                model, decay=config.ema, use_warmup=config.ema_warmup, foreach=foreach
            )
            self.processes.divide(self.average.module)
        self.processes.divide(model)
        self.groups = groups.build_groups(model, config)
        self.optimizer = groups.build_optimizer(self.groups, config)
        self.update = Update(
            self.optimizer, model, config, self.device, fp16=self.dtype == torch.float16
        )
        model.transformer.checkpointing = config.grad_checkpointing
        if config.compile:
            model.compile()
        self.network = self.processes.parallel(model, config.sync_bn)
        self.losses = reference_head_losses if config.reference_ops else head_losses
        self.head_weights = torch.tensor(HEAD_WEIGHTS, device=self.device)
        self.thawed = not config.freeze
        self.measure(unmeasured)

    def measure(self, phase: Phase) -> None:
        """Let `phase` see the parts of each step."""
        self.phase = self.update.phase = phase

    @property
    def evaluated(self) -> TransFuse:
        return self.model if self.average is None else self.average.module

    @property
    def parameters(self) -> list[Tensor]:
        """Those that train now."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def begin_epoch(self, epoch: int) -> None:
        """Let frozen parameters train where it is time to; the network goes to train mode."""
        if not self.thawed and epoch >= (self.config.freeze_epochs or epoch + 1):
            self._thaw()
        groups.train_mode(self.model)

    def _thaw(self) -> None:
        groups.thaw(self.groups, self.optimizer, self.config.freeze)
        self.thawed = True
        # DistributedDataParallel waits for the gradients of those that trained when it was made.
        self.network = self.model
        self.network = self.processes.parallel(self.model, self.config.sync_bn)

    def step(self, images: Tensor, masks: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """One optimizer step, of as many batches as the images fill.

        Args:
            images: of this process, uint8 [B, 3, H, W].
            masks: uint8 [B, C, H, W], 0..255; one channel more than the network has marks pixels
                that count nowhere.
            number: of this step, from 0.

        Returns:
            The losses of map_2, map_1 and map_x [3], over the images of all processes, and the
            gradient norm before clipping.

        Raises:
            RunError: too many steps in a row were not finite. Such a step changes nothing.
        """
        if self.bad_steps is not None:
            self.bad_steps.begin()
        self.processes.seed_step(self.config.seed, number)
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros_like(self.head_weights)
        size = self.config.batch_size // self.processes.world
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            share = len(images[part]) / len(images)
            with self.processes.accumulating(self.network, last=start + size >= len(images)):
                losses += self._accumulate(images[part], masks[part], share)
        losses = self.processes.mean(losses)
        norm = self.update.step()
        # Before the average takes over running statistics that a bad step has spoiled.
        if self._good(number, losses, norm) and self.average is not None:
            self.average.update(self.model, number + 1)
        return losses, norm

    def _good(self, number: int, losses: Tensor, norm: Tensor) -> bool:
        if self.bad_steps is None:
            return True
        if self.update.scaler.is_enabled():
            self.update.check()
            # To a loss scale, gradients that are not finite are a normal event.
            norm = losses.sum()
        return self.bad_steps.accepts(number + 1, losses, norm)

    def _accumulate(self, images: Tensor, masks: Tensor, share: float) -> Tensor:
        """Add a batch's share of the gradients; returns its share of the losses [3]."""
        with self.phase("data"):
            images = normalise(images.to(self.device, non_blocking=True))
            masks = masks.to(self.device, non_blocking=True)
        enabled = self.dtype is not None
        with self.phase("forward"), torch.autocast(self.device.type, self.dtype, enabled=enabled):
            maps = self.network(images)
        with self.phase("loss"):
            losses = self.losses(maps, masks) * share
            loss = torch.dot(losses, self.head_weights)
            # The gradient of a loss that is not finite may be: NaN has its step left out.
            loss = loss * torch.where(loss.isfinite(), 1.0, torch.nan)
        with self.phase("backward"):
            self.update.backward(loss)
        return losses.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside `evaluated`."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "update": self.update.state_dict(),
            "thawed": self.thawed,
        }
        if self.average is not None:  # the checkpoint's own weights are then the average
            state["training_weights"] = self.model.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if state.get("thawed", True) and not self.thawed:
            self._thaw()
        optimizer, processes = self.optimizer, self.processes
        groups.load_optimizer(optimizer, processes.optimizer_parts(state["optimizer"], optimizer))
        if "update" in state:
            self.update.load_state_dict(state["update"])
        if self.average is not None:
            self.model.load_state_dict(processes.parts(state["training_weights"], self.model))
