"""The training loop: published step, exact resume, checkpoints that survive anything."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastclip.transfuse.config.checks import image_size, require_one_process, torch_device
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Size
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.measuring.evaluate import evaluate
from fastclip.transfuse.optimization.groups import set_lr
from fastclip.transfuse.optimization.selection import Best
from fastclip.transfuse.recording.progress import Eta
from fastclip.transfuse.recording.record import Record, StopSignals
from fastclip.transfuse.safety import continuation
from fastclip.transfuse.safety.bad_steps import BadSteps
from fastclip.transfuse.safety.claim import Claim, claim_folder
from fastclip.transfuse.safety.failures import explained
from fastclip.transfuse.safety.saving import Saver
from fastclip.transfuse.storage.checkpoint import load_weights
from fastclip.transfuse.storage.provenance import write_config
from fastclip.transfuse.training import setup
from fastclip.transfuse.training.batches import TrainingBatches
from fastclip.transfuse.training.profile import Profile
from fastclip.transfuse.training.schedule import changed_rates
from fastclip.transfuse.training.step import Learner

INTERRUPTED = 130
# Attributes of a trainer that are numbers, and go into the checkpoint under their names.
COUNTERS = ("step", "epoch", "batch", "validated", "best_step")


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
        self.data = continuation.digests_of(train=self.train_set, val=self.val_set)
        torch.manual_seed(config.seed)
        self.record = Record(self.out, self.val_set.source, config)
        self.model, self.notes = setup.build_model(config, fresh=claim.checkpoint is None)
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last)
        self.bad_steps = BadSteps(self.model, config.max_bad_steps, self.out, self.record.say)
        self.learner = Learner(self.model, config, self.bad_steps)
        self.optimizer = self.learner.optimizer
        self.batches = TrainingBatches(self.train_set, config, self.device)
        self.per_epoch = len(self.batches)
        self.budget = setup.budget_of(config, self.per_epoch)
        self.schedule = setup.build_schedule(config, self.per_epoch)
        self.step = self.epoch = self.batch = 0  # batch counts within the epoch
        self.validated = 0  # the step of the last validation
        self.scores: dict[str, float] = {}  # of the last validation
        self.best, self.best_step = Best(config.best_by, config.patience), -1
        self.seconds_before = 0.0
        self._begin(claim)

    def _begin(self, claim: Claim) -> None:
        """Take the place of an earlier run, or go on with it."""
        config = self.config
        self.saver = Saver(self.out, self.lock, config.interval(), config.keep)
        if claim.checkpoint is not None:
            with continuation.restoring(claim.file):
                continuation.require_same_data(claim.checkpoint, self.data, self.saver.last)
        claim.replace_earlier()
        self.profile = Profile(
            self.device, self.out, self.learner.measure, self.record.say, config.profile
        )
        self.stop = StopSignals()
        if claim.checkpoint is not None:
            with continuation.restoring(claim.file):
                self._restore(claim.checkpoint)
        setup.write_split(self.out, self.train_set, self.val_set)
        write_config(self.out / "config.yaml", config, **self._made_from())
        self.started = time.monotonic()
        eta = Eta(self.step, self.budget.total_steps, self.budget.total_seconds, self.seconds)
        self.record.begin(self.model, self.optimizer, self.learner.update.limit, eta)

    @property
    def parameters(self) -> list[Tensor]:
        """Those that train now."""
        return self.learner.parameters

    def seconds(self) -> float:
        """Time spent on this run, resumed parts together."""
        return self.seconds_before + time.monotonic() - self.started

    def _made_from(self) -> dict[str, Any]:
        """What describes the run beside its flags."""
        return {
            "data": {
                "digest": continuation.data_digest(self.data),
                "images": {"train": len(self.train_set), "val": len(self.val_set)},
            },
            "device": str(self.device),
            "precision": self.learner.precision,
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
        while self.validated != self.step or not (self._spent() or self.best.exhausted()):
            self._train_epoch()
            if self.stop.requested or not self._finish_epoch():
                return self._interrupted()
        model = self.learner.evaluated
        self.record.finish(model, self.val_set, self.about(), lambda: self.stop.requested)
        if self.bad_steps.total:
            self.record.say(f"{self.bad_steps.total} steps were not finite and left out")
        self.record.say(f"{self.best}; everything is in {self.out}")
        return 0

    def about(self) -> list[str]:
        """What is trained on what, in a few words each."""
        millions = sum(p.numel() for p in self.parameters) / 1e6
        return [
            f"{self.config.model}, {millions:.1f} M parameters",
            f"{self.config.size}, {self.learner.precision} on {self.device}",
            f"{len(self.train_set)} images of {self.train_set.source}",
            f"{len(self.val_set)} of {self.val_set.source}",
        ]

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
        progress = self.budget.progress(self.step, self.seconds())
        factor = self.schedule.factor(self.step, progress)
        set_lr(self.optimizer, factor)
        return self.config.lr * factor

    def train_step(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step: `Learner.step`, whose gradients are finite.

        Raises:
            RunError: one more than --max-bad-steps in a row were not finite. After such a step
                weights and running statistics are as before it.
        """
        return self.learner.step(images, masks, self.step)

    def _finish_epoch(self) -> bool:
        """Validate and save; False where a signal cut the validation short."""
        model = self.learner.evaluated
        result = evaluate(model, self.val_set, self.config.batch_size, lambda: self.stop.requested)
        if result is None:
            return False
        self.record.validated(self.epoch, self.step, self.seconds(), result)
        self.record.show(model, self.val_set, self.step)
        self.validated = self.step
        if self.batch >= self.per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        self.scores = {"dice": result.dice, "loss": result.loss}
        if self.best.update(result):
            self.best_step = self.step
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
            "weights": self.learner.evaluated.state_dict(),
            "config": {k: str(v) if isinstance(v, Path) else v for k, v in config.items()},
            **{name: getattr(self, name) for name in COUNTERS},
            **self.scores,
            "best": self.best.state_dict(),
            **self.learner.state_dict(),
            "seconds": self.seconds(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "record": self.record.state(),
            "bad_steps": self.bad_steps.state(),
            "data": self.data,
        }

    def _restore(self, content: dict[str, Any]) -> None:
        load_weights(self.learner.evaluated, content, self.saver.last)
        self.learner.load_state_dict(content)
        self.best.load_state_dict(content["best"])
        for name in COUNTERS:
            setattr(self, name, int(content.get(name, getattr(self, name))))
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
            self.best, self.best_step = Best(self.config.best_by, self.config.patience), -1

    def _say_changes(self, before: dict[str, Any]) -> None:
        """Another budget under a decay is another learning rate, from the first step on."""
        old = setup.budget_of(
            replace(self.config, **continuation.budget_flags(before)), self.per_epoch
        )
        budgets = old, self.budget
        if rates := changed_rates(self.schedule, budgets, self.step, self.seconds_before):
            was, now = (self.config.lr * rate for rate in rates)
            self.record.say(
                f"the budget was {old} and is {self.budget}: under --schedule "
                f"{self.config.schedule} the learning rate at step {self.step} is {now:.2e}, where "
                f"it was {was:.2e}"
            )


def run_train(config: TrainConfig) -> int:
    """`fastclip train`: the exit code."""
    with usage_errors(), explained():
        trainer = Trainer(config)
    trainer.record.say_all(trainer.train_set.notes + trainer.val_set.notes + trainer.notes)
    trainer.record.say("; ".join(trainer.about()))
    return trainer.fit()
