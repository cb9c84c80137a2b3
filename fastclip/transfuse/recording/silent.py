"""The record of a process that leaves showing and keeping to another one of its run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastclip.transfuse.data.samples import Samples
from fastclip.transfuse.measuring.evaluate import Evaluation
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.recording.bar import StepBar
from fastclip.transfuse.recording.progress import Eta
from fastclip.transfuse.recording.record import Record


class SilentBar(StepBar):
    """Shows nothing."""

    def step(self, step: int, losses: Tensor, norm: Tensor, lr: float, images: int) -> None:
        self.record.observe(norm, step)

    def skip(self) -> None:
        pass


class SilentRecord(Record):
    """A `Record` that shows and writes nothing.

    Norms of a sharded network it measures with the others: they are sums over all processes.
    """

    def begin(
        self,
        model: TransFuse,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None,
        eta: Eta,
    ) -> None:
        if self.config.fsdp:
            self.watch_norms(model, optimizer, max_norm)

    def say(self, line: str) -> None:
        pass

    def bar(self, epoch: int, total: int, start: int) -> StepBar:
        return SilentBar(self, epoch, total, start, live=False)

    def validated(self, epoch: int, step: int, seconds: float, result: Evaluation) -> None:
        pass

    def show(self, model: TransFuse, samples: Samples, step: int) -> None:
        pass

    def finish(
        self, model: TransFuse, samples: Samples, about: list[str], stop: Callable[[], bool]
    ) -> None:
        if self.norms is not None:
            self.norms.close()

    def restore(self, state: dict[str, Any]) -> None:
        self._restored = dict(state)
