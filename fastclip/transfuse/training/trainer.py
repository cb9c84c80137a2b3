"""The training loop: published step, exact resume, checkpoints that survive anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastclip
from fastclip.transfuse.config.checks import (
    image_size,
    require_one_process,
    torch_device,
    uses_bf16,
)
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Size
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.measuring.evaluate import evaluate
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.recording.progress import Eta
from fastclip.transfuse.recording.record import Record, StopSignals
from fastclip.transfuse.safety.bad_steps import BadSteps
from fastclip.transfuse.safety.claim import Claim, claim_folder
from fastclip.transfuse.safety.continuation import (
    budget_flags,
    data_digest,
    require_same_data,
    restoring,
    sample_digests,
)
from fastclip.transfuse.safety.failures import explained
from fastclip.transfuse.safety.saving import Saver
from fastclip.transfuse.storage.checkpoint import load_weights
from fastclip.transfuse.storage.provenance import write_config
from fastclip.transfuse.training import setup
from fastclip.transfuse.training.augment import steps_per_epoch, train_batches
from fastclip.transfuse.training.objective import HEAD_WEIGHTS, head_losses
from fastclip.transfuse.training.schedule import Budget, lr_factor

INTERRUPTED = 130
# Attributes of a trainer that are numbers, and go into the checkpoint under their names.
COUNTERS = ("step", "epoch", "batch", "validated", "best_dice", "best_step")


class Trainer:
    """One run: model, optimizer, data, and where in the schedule it is.

    Args:
        config: checked here; ValueError names a wrong argument.

    Call `fit()`; the run's files lie in `self.out`.
    """

    def __init__(self, config: TrainConfig) -> None:
        config.check()
        require_one_process()
        size = image_size(config.size, config.model)
        self.config = config = replace(config, size=f"{size[0]}x{size[1]}")
        self.device = torch_device(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        claim = claim_folder(config)
        self.out, self.lock = claim.folder, claim.lock
        try:
            self._set_up(claim, size)
        except BaseException:
            self.lock.release()
            raise

    def _set_up(self, claim: Claim, size: Size) -> None:
        config = self.config
        self.train_set, self.val_set = setup.load_sets(config, size, self.out)
        self.data = {"train": sample_digests(self.train_set), "val": sample_digests(self.val_set)}
        torch.manual_seed(config.seed)
        self.model = setup.build_model(config).to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = setup.build_optimizer(self.model, config)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.per_epoch = steps_per_epoch(len(self.train_set), config.batch_size)
        self.budget = setup.budget_of(config, self.per_epoch)
        self.head_weights = torch.tensor(HEAD_WEIGHTS, device=self.device)
        self.step = self.epoch = self.batch = 0  # batch counts within the epoch
        self.validated = 0  # the step of the last validation
        self.scores: dict[str, float] = {}  # of the last validation
        self.best_dice, self.best_step, self.seconds_before = -1.0, -1, 0.0
        self.saver = Saver(self.out, self.lock, config.interval(), config.keep)
        if claim.checkpoint is not None:
            with restoring(claim.file):
                require_same_data(claim.checkpoint, self.data, self.saver.last)
        claim.replace_earlier()
        self.record = Record(self.out, self.val_set.source, config)
        self.bad_steps = BadSteps(self.model, config.max_bad_steps, self.out, self.record.say)
        self.stop = StopSignals()
        if claim.checkpoint is not None:
            with restoring(claim.file):
                self._restore(claim.checkpoint)
        setup.write_split(self.out, self.train_set, self.val_set)
        write_config(self.out / "config.yaml", config, **self._made_from())
        self.started = time.monotonic()
        self.record.begin(
            self.model,
            self.optimizer,
            asdict(config),
            max_norm=config.clip_norm,
            time_left=self._time_left(),
        )

    def seconds(self) -> float:
        """Time spent on this run, resumed parts together."""
        return self.seconds_before + time.monotonic() - self.started

    def _made_from(self) -> dict[str, Any]:
        """What describes the run beside its flags."""
        return {
            "data": {
                "digest": data_digest(self.data),
                "images": {"train": len(self.train_set), "val": len(self.val_set)},
            },
            "device": str(self.device),
            "precision": "bf16" if self.bf16 else "fp32",
        }

    def fit(self) -> int:
        """Train to the end of the budget; 0, or 130 where a signal ended it early.

        Raises:
            RunError: too many steps in a row were not finite, a file could not be written, or
                the machine failed; the checkpoints of before stand.
        """
        try:
            with self.stop, explained(self.saver.standing):
                return self._fit()
        finally:
            self.lock.release()

    def _fit(self) -> int:
        # A run stopped between its last step and that step's validation still owes it.
        while self.validated != self.step or not self._spent():
            self._train_epoch()
            if self.stop.requested or not self._finish_epoch():
                return self._interrupted()
        self.record.finish(self.model, self.val_set, self.config.batch_size, self.about())
        if self.bad_steps.total:
            self.record.say(f"{self.bad_steps.total} steps were not finite and left out")
        self.record.say(f"best Dice {self.best_dice:.4f}; everything is in {self.out}")
        return 0

    def _time_left(self) -> Callable[[int], float | None]:
        eta, budget = Eta(self.step), self.budget
        limit = budget.total_seconds

        def time_left(step: int) -> float | None:
            left = None if limit is None else limit - self.seconds()
            return eta.seconds(step, budget.total_steps, left)

        return time_left

    def about(self) -> list[str]:
        """What is trained on what, in a few words each."""
        millions = sum(p.numel() for p in self.parameters) / 1e6
        return [
            f"{self.config.model}, {millions:.1f} M parameters",
            f"{self.config.size}, {'bf16' if self.bf16 else 'fp32'} on {self.device}",
            f"{len(self.train_set)} images of {self.train_set.source}",
            f"{len(self.val_set)} of {self.val_set.source}",
        ]

    def _train_epoch(self) -> None:
        """Go through what is left of the epoch, or of the budget."""
        if self._spent():
            return
        config = self.config
        batches = train_batches(
            self.train_set,
            config.batch_size,
            seed=config.seed,
            epoch=self.epoch,
            start=self.batch,
            augment=config.augment,
            workers=config.workers,
        )
        self.model.train()
        with self.record.bar(self.epoch, self.per_epoch, self.batch) as bar:
            for images, masks in batches:
                lr = self._set_lr()
                losses, norm = self.train_step(images, masks)
                self.step, self.batch = self.step + 1, self.batch + 1
                if self.bad_steps.in_a_row:
                    bar.skip()
                else:
                    bar.step(self.step, losses, norm, lr, len(images))
                if self.stop.requested or self._spent():
                    return
                if self.saver.due(self.step):
                    self.saver.save(self._content())

    def _spent(self) -> bool:
        return self.budget.spent(self.step, self.seconds())

    def _set_lr(self) -> float:
        lr = self._rate(self.budget, self.seconds())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _rate(self, budget: Budget, seconds: float) -> float:
        config, progress = self.config, budget.progress(self.step, seconds)
        return config.lr * lr_factor(config.schedule, self.step, config.warmup_steps, progress)

    def train_step(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step.

        Args:
            images: uint8 [B, 3, H, W]. masks: uint8 [B, C, H, W], 0..255; one channel more than
                the network has marks pixels that count nowhere.

        Returns:
            The losses of map_2, map_1 and map_x [3], and the gradient norm before clipping.

        Raises:
            RunError: one more than --max-bad-steps in a row were not finite. After such a step
                weights and running statistics are as before it.
        """
        self.bad_steps.begin()
        images = normalise(images.to(self.device, non_blocking=True))
        masks = masks.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            maps = self.model(images)
        losses = head_losses(maps, masks)
        loss = torch.dot(losses, self.head_weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = fastclip.clip_grad_norm_(self.parameters, self.config.clip_norm)
        if self.bad_steps.accepts(self.step + 1, losses, norm):
            self.optimizer.step()
        return losses.detach(), norm

    def _finish_epoch(self) -> bool:
        """Validate and save; False where a signal cut the validation short."""
        result = evaluate(
            self.model, self.val_set, self.config.batch_size, lambda: self.stop.requested
        )
        if result is None:
            return False
        self.record.validated(self.epoch, self.step, self.seconds(), result)
        self.record.show(self.model, self.val_set, self.step)
        self.validated = self.step
        if self.batch >= self.per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        self.scores = {"dice": result.dice, "loss": result.loss}
        if result.dice > self.best_dice:  # NaN never is
            self.best_dice, self.best_step = result.dice, self.step
        self.saver.save(self._content())
        return True

    def _interrupted(self) -> int:
        self.saver.save(self._content())
        self.record.say(
            f"stopped at step {self.step}; {self.out / 'last.pt'} is saved: the same command with "
            f"--resume --out {self.out} goes on"
        )
        return INTERRUPTED

    def _content(self) -> dict[str, Any]:
        """What last.pt holds, and best.pt a part of it."""
        config = asdict(self.config)
        cuda = self.device.type == "cuda"
        return {
            "model": self.config.model,
            "weights": self.model.state_dict(),
            "config": {k: str(v) if isinstance(v, Path) else v for k, v in config.items()},
            **{name: getattr(self, name) for name in COUNTERS},
            **self.scores,
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "record": self.record.state(),
            "bad_steps": self.bad_steps.state(),
            "data": self.data,
        }

    def _restore(self, content: dict[str, Any]) -> None:
        load_weights(self.model, content, self.saver.last)
        self.optimizer.load_state_dict(content["optimizer"])
        for name in COUNTERS:
            now = getattr(self, name)
            setattr(self, name, type(now)(content.get(name, now)))
        self.scores = {name: content[name] for name in ("dice", "loss") if name in content}
        self.seconds_before = float(content["seconds"])
        self.record.restore(content["record"])
        self.bad_steps.restore(content.get("bad_steps", self.bad_steps.state()))
        torch.set_rng_state(content["rng"])
        if content["rng_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(content["rng_cuda"], self.device)
        self._say_changes(content["config"])
        self.saver.complete(content)
        if self.best_step >= 0 and not self.saver.best.exists():
            self.record.say(f"{self.saver.best} is gone: the best from here on takes its place")
            self.best_dice, self.best_step = -1.0, -1

    def _say_changes(self, before: dict[str, Any]) -> None:
        """Another budget under a decay is another learning rate, from the first step on."""
        old = setup.budget_of(replace(self.config, **budget_flags(before)), self.per_epoch)
        rates = [self._rate(budget, self.seconds_before) for budget in (old, self.budget)]
        if old != self.budget and self.config.schedule != "constant":
            self.record.say(
                f"the budget was {old} and is {self.budget}: under --schedule "
                f"{self.config.schedule} the learning rate at step {self.step} is "
                f"{rates[1]:.2e}, where it was {rates[0]:.2e}"
            )


def run_train(config: TrainConfig) -> int:
    """`fastclip train`: the exit code."""
    with usage_errors(), explained():
        trainer = Trainer(config)
    trainer.record.say_all(trainer.train_set.notes + trainer.val_set.notes)
    trainer.record.say("; ".join(trainer.about()))
    return trainer.fit()
