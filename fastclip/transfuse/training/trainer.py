"""The training loop: published step, exact resume, checkpoints that survive anything."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastclip.transfuse.config.checks import image_size
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Size
from fastclip.transfuse.distributed.join import joined
from fastclip.transfuse.distributed.launch import require_alone
from fastclip.transfuse.distributed.processes import Processes
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.measuring.evaluate import evaluate
from fastclip.transfuse.optimization.groups import set_lr
from fastclip.transfuse.optimization.selection import Best
from fastclip.transfuse.recording.progress import Eta
from fastclip.transfuse.recording.record import Record, StopSignals
from fastclip.transfuse.recording.silent import SilentRecord
from fastclip.transfuse.safety import continuation
from fastclip.transfuse.safety.bad_steps import BadSteps
from fastclip.transfuse.safety.claim import Claim, claim_together
from fastclip.transfuse.safety.failures import explained
from fastclip.transfuse.safety.saving import Saver
from fastclip.transfuse.storage.provenance import write_config
from fastclip.transfuse.training import setup
from fastclip.transfuse.training.batches import TrainingBatches, require_equal_shares
from fastclip.transfuse.training.profile import Profile
from fastclip.transfuse.training.state import content_of, restore
from fastclip.transfuse.training.step import Learner

INTERRUPTED = 130


class Trainer:
    """One run: model, optimizer, data, and where in the schedule it is.

    Args:
        config: checked here; ValueError names a wrong argument.
        processes: that train together; None where this one does alone.

    Call `fit()`; the run's files lie in `self.out`.
    """

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        config.check()
        if processes is None:
            require_alone()
        self.processes = processes or Processes()
        if config.fsdp and not self.processes.sharded:
            raise ValueError(
                "--fsdp divides a network among the processes of torchrun, and this one was "
                "started alone: torchrun --nproc-per-node=2 -m fastclip train --fsdp ...; or leave "
                "it out"
            )
        config = self.processes.continued(config)
        size = image_size(config.size, config.model)
        self.config = config = replace(config, size=f"{size[0]}x{size[1]}")
        self.device = self.processes.device(config.device)
        claim = claim_together(config, self.processes)
        self.out, self.lock = claim.folder, claim.lock
        try:
            self._set_up(claim, size)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _set_up(self, claim: Claim, size: Size) -> None:
        config, processes = self.config, self.processes
        split = processes.from_main(lambda: setup.recorded_split(config, self.out))
        self.train_set, self.val_set = setup.load_sets(config, size, split)
        require_equal_shares(config, len(self.train_set), processes.world)
        self.data = continuation.digests_of(train=self.train_set, val=self.val_set)
        continuation.require_equal_data(self.data, processes)
        torch.manual_seed(config.seed)
        kind = Record if processes.main else SilentRecord
        self.record = kind(self.out, self.val_set.source, config)
        fresh = claim.checkpoint is None and processes.main
        self.model, self.notes = setup.build_model(config, fresh)
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last)
        processes.replicate(self.model)
        if config.sync_bn:
            self.model = processes.normalised(self.model)
        self.bad_steps = BadSteps(self.model, config.max_bad_steps, self.out, self.record.say)
        self.learner = Learner(self.model, config, self.bad_steps, processes)
        self.optimizer = self.learner.optimizer
        self.batches = TrainingBatches(self.train_set, config, self.device, processes)
        self.per_epoch = len(self.batches)
        self.budget = setup.budget_of(config, self.per_epoch)
        self.schedule = setup.build_schedule(config, self.per_epoch)
        self.step = self.epoch = self.batch = 0  # batch counts within the epoch
        self.validated = 0  # the step of the last validation
        self.scores: dict[str, float] = {}  # of the last validation
        self.best, self.best_step = Best(config.best_by, config.patience), -1
        self.seconds_before = 0.0
        self.stopping, self.agreed_s = False, 0.0  # what all processes decide by
        self._begin(claim)

    def _begin(self, claim: Claim) -> None:
        """Take the place of an earlier run, or go on with it."""
        config = self.config
        self.saver = Saver(self.out, self.lock, config.interval(), config.keep)
        if claim.checkpoint is not None:
            with continuation.restoring(claim.file):
                continuation.require_same_data(claim.checkpoint, self.data, self.saver.last)
        claim.replace_earlier()
        self.processes.began(self.out)
        profiled = config.profile and self.processes.main
        self.profile = Profile(
            self.device, self.out, self.learner.measure, self.record.say, profiled
        )
        self.stop = StopSignals()
        best_gone = self.processes.from_main(lambda: not self.saver.best.exists())
        if claim.checkpoint is not None:
            with continuation.restoring(claim.file):
                restore(self, claim.checkpoint, best_gone)
        self.processes.on_main(self._write_begin)
        self.started = time.monotonic()
        eta = Eta(self.step, self.budget.total_steps, self.budget.total_seconds, self.seconds)
        self.record.begin(self.model, self.optimizer, self.learner.update.limit, eta)

    @property
    def parameters(self) -> list[Tensor]:
        """Those that train now."""
        return self.learner.parameters

    def _write_begin(self) -> None:
        setup.write_split(self.out, self.train_set, self.val_set)
        write_config(self.out / "config.yaml", self.config, **self._made_from())

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
            "processes": self.processes.world,
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
            self._release()

    def _fit(self) -> int:
        # A run stopped between its last step and that step's validation still owes it.
        self._agree()
        while self.validated != self.step or not (self._spent() or self.best.exhausted()):
            self._train_epoch()
            if self.stopping or not self._finish_epoch():
                return self._interrupted()
        model = self.processes.complete(self.learner.evaluated)
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
            f"{self.config.size}, {self.learner.precision} on {self._where()}",
            f"{len(self.train_set)} images of {self.train_set.source}",
            f"{len(self.val_set)} of {self.val_set.source}",
        ]

    def _where(self) -> str:
        world = self.processes.world
        return str(self.device) if world == 1 else f"{world} x {self.device.type}"

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
                    count = len(images) * self.processes.world
                    bar.step(self.step, losses, norm, lr, count)
                self._agree()
                if self.stopping or self._spent():
                    return
                self._save_if_due()

    def _agree(self) -> bool:
        """Let all processes know the main one's clock, and whether any is told to stop."""
        known = self.processes.agree(self.stop.requested, self.seconds())
        self.stopping, self.agreed_s = known
        return self.stopping

    def _save_if_due(self) -> None:
        saver = self.saver
        if saver.every is not None and self.processes.from_main(lambda: saver.due(self.step)):
            self._save()

    def _save(self) -> None:
        content = content_of(self)  # all processes gather it
        self.processes.on_main(lambda: self.saver.save(content))

    def _spent(self) -> bool:
        return self.budget.spent(self.step, self.agreed_s)

    def _set_lr(self) -> float:
        progress = self.budget.progress(self.step, self.agreed_s)
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
        model = self.processes.complete(self.learner.evaluated)
        size = self.config.batch_size
        result = evaluate(model, self.val_set, size, self._agree, self.processes)
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
        self._save()
        self._agree()
        return True

    def _interrupted(self) -> int:
        self._save()
        self.processes.wait()  # torchrun ends all once one has ended
        self.record.say(
            f"stopped at step {self.step}; {self.out / 'last.pt'} is saved: the same command with "
            f"--resume --out {self.out} goes on"
        )
        return INTERRUPTED


def run_train(config: TrainConfig) -> int:
    """`fastclip train`: the exit code."""
    with joined(config) as processes:
        with usage_errors(), explained():
            trainer = Trainer(config, processes)
        trainer.record.say_all(trainer.train_set.notes + trainer.val_set.notes + trainer.notes)
        trainer.record.say("; ".join(trainer.about()))
        return trainer.fit()
