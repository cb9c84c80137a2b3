"""The training loop: published step, exact resume, checkpoints that survive anything."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastclip.transfuse.config.checks import image_size, torch_device
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.errors import RunError, usage_errors
from fastclip.transfuse.measuring.evaluate import Evaluation, evaluate
from fastclip.transfuse.optimization.groups import set_lr
from fastclip.transfuse.optimization.selection import Best
from fastclip.transfuse.recording.record import LOG_EVERY, Record, StopSignals
from fastclip.transfuse.storage.checkpoint import load_weights, save_checkpoint
from fastclip.transfuse.training import setup
from fastclip.transfuse.training.batches import TrainingBatches
from fastclip.transfuse.training.profile import Profile
from fastclip.transfuse.training.schedule import Budget
from fastclip.transfuse.training.step import Learner

INTERRUPTED = 130


class Trainer:
    """One run: model, optimizer, data, and where in the schedule it is.

    Args:
        config: checked here; ValueError names a wrong argument.

    Call `fit()`; the run's files lie in `self.out`.
    """

    def __init__(self, config: TrainConfig) -> None:
        config.check()
        size = image_size(config.size, config.model)
        self.config = config = replace(config, size=f"{size[0]}x{size[1]}")
        self.device = torch_device(config.device)
        self.out, resumed = setup.claim_folder(config)
        self.train_set, self.val_set = setup.load_sets(config, size, self.out)
        torch.manual_seed(config.seed)
        self.model, self.notes = setup.build_model(config, fresh=resumed is None)
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last)
        self.learner = Learner(self.model, config)
        self.optimizer = self.learner.optimizer
        self.batches = TrainingBatches(self.train_set, config, self.device)
        self.per_epoch = len(self.batches)
        steps = config.epochs * self.per_epoch
        seconds = config.max_time * 60 if config.max_time else None
        self.budget = Budget(min(steps, config.max_steps or steps), seconds)
        self.schedule = setup.build_schedule(config, self.per_epoch)
        self.step = self.epoch = self.batch = 0  # batch counts within the epoch
        self.validated = 0  # the step of the last validation
        self.latest: tuple[Tensor, Tensor] | None = None  # losses and norm of the last step
        self.best, self.seconds_before = Best(config.best_by, config.patience), 0.0
        self.record = Record(self.out, self.val_set.source, config.tensorboard)
        self.profile = Profile(
            self.device, self.out, self.learner.measure, self.record.say, config.profile
        )
        self.stop = StopSignals()
        if resumed is not None:
            self._restore(resumed)
        elif config.overwrite:  # or the best.pt of the earlier run would pass for this one's
            for name in setup.RUN_FILES:
                (self.out / name).unlink(missing_ok=True)
        setup.write_split(self.out, self.train_set, self.val_set)
        self.started = time.monotonic()

    @property
    def parameters(self) -> list[Tensor]:
        """Those that train now."""
        return self.learner.parameters

    def seconds(self) -> float:
        """Time spent on this run, resumed parts together."""
        return self.seconds_before + time.monotonic() - self.started

    def fit(self) -> int:
        """Train to the end of the budget; 0, or 130 where a signal ended it early.

        Raises:
            RunError: a loss or gradient norm is not finite, or a checkpoint could not be
                written.
        """
        with self.stop:
            # A run stopped between its last step and that step's validation still owes it.
            while self.validated != self.step or not (self._spent() or self.best.exhausted()):
                self._train_epoch()
                if self.stop.requested or not self._finish_epoch():
                    return self._interrupted()
        self.record.pictures(self.learner.evaluated, self.val_set)
        self.record.say(f"{self.best}; everything is in {self.out}")
        return 0

    def _train_epoch(self) -> None:
        """Go through what is left of the epoch, or of the budget."""
        if self._spent():
            return
        self.learner.begin_epoch(self.epoch)
        batches = self.profile.fetched(self.batches.epoch(self.epoch, self.batch))
        with self.record.bar(self.epoch, self.per_epoch, self.batch) as bar:
            for images, masks in batches:
                lr = self._set_lr()
                losses, norm = self.train_step(images, masks)
                self.step, self.batch = self.step + 1, self.batch + 1
                bar.step(self.step, losses, norm, lr, len(images))
                if self.step % LOG_EVERY == 0:
                    self._require_finite(losses, norm)
                if self.stop.requested or self._spent():
                    return

    def _spent(self) -> bool:
        return self.budget.spent(self.step, self.seconds())

    def _set_lr(self) -> float:
        progress = self.budget.progress(self.step, self.seconds())
        factor = self.schedule.factor(self.step, progress)
        set_lr(self.optimizer, factor)
        return self.config.lr * factor

    def train_step(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step: `Learner.step`, whose gradients are finite.

        Raises:
            RunError: on a CPU, loss or norm is not finite; the weights are then unchanged.
                Elsewhere that is looked at now and then, to spare a sync per step.
        """
        self.latest = self.learner.step(images, masks, self.step)
        if self.device.type == "cpu":
            self._require_finite(*self.latest)
        return self.latest

    def _require_finite(self, losses: Tensor, norm: Tensor) -> None:
        self.learner.update.check()
        values = [*losses.tolist(), norm.item()]
        # To a loss scale, gradients that are not finite are a normal event.
        judged = values[:3] if self.learner.update.scaler.is_enabled() else values
        if not all(map(math.isfinite, judged)):
            text = "loss of map_2 {:.4g}, map_1 {:.4g}, map_x {:.4g}, gradient norm {:.4g}"
            raise RunError(
                f"not finite at step {self.step}: {text.format(*values)}. Try a lower --lr; "
                f"the checkpoints in {self.out} are from before"
            )

    def _finish_epoch(self) -> bool:
        """Validate and save; False where a signal cut the validation short."""
        self._check_latest()
        model = self.learner.evaluated
        result = evaluate(model, self.val_set, self.config.batch_size, lambda: self.stop.requested)
        if result is None:
            return False
        self.record.validated(self.epoch, self.step, self.seconds(), result)
        self.validated = self.step
        if self.batch >= self.per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        if self.best.update(result):
            save_checkpoint(self.out / "best.pt", self._content(result))
        self._save_last()
        return True

    def _check_latest(self) -> None:
        if self.latest is not None:
            self._require_finite(*self.latest)

    def _interrupted(self) -> int:
        self._check_latest()
        self._save_last()
        self.record.say(
            f"stopped at step {self.step}; {self.out / 'last.pt'} is saved: the same command with "
            f"--resume --out {self.out} goes on"
        )
        return INTERRUPTED

    def _content(self, result: Evaluation | None = None) -> dict[str, Any]:
        config = asdict(self.config)
        config = {k: str(v) if isinstance(v, Path) else v for k, v in config.items()}
        scores = {} if result is None else {"dice": result.dice, "loss": result.loss}
        return {
            "model": self.config.model,
            "weights": self.learner.evaluated.state_dict(),
            "config": config,
            "step": self.step,
            **scores,
        }

    def _save_last(self) -> None:
        cuda = self.device.type == "cuda"
        state = {
            **self.learner.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "validated": self.validated,
            "seconds": self.seconds(),
            "best": self.best.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "record": self.record.state(),
        }
        save_checkpoint(self.out / "last.pt", {**self._content(), **state})

    def _restore(self, content: dict[str, Any]) -> None:
        file = self.out / "last.pt"
        load_weights(self.learner.evaluated, content, file)
        self.learner.load_state_dict(content)
        self.step, self.epoch, self.batch = (content[k] for k in ("step", "epoch", "batch"))
        self.validated = content["validated"]
        self.best.load_state_dict(content["best"])
        self.seconds_before = content["seconds"]
        self.record.restore(content["record"])
        torch.set_rng_state(content["rng"])
        if content["rng_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(content["rng_cuda"], self.device)


def run_train(config: TrainConfig) -> int:
    """`fastclip train`: the exit code."""
    with usage_errors():
        trainer = Trainer(config)
    millions = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    trainer.record.say_all(trainer.train_set.notes + trainer.val_set.notes + trainer.notes)
    trainer.record.say(
        f"{config.model}, {millions:.1f} M parameters, {trainer.config.size}, "
        f"{trainer.learner.precision} on {trainer.device}; "
        f"{len(trainer.train_set)} images of {trainer.train_set.source}, "
        f"{len(trainer.val_set)} of {trainer.val_set.source}"
    )
    return trainer.fit()
