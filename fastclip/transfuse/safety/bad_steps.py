"""Steps whose loss or gradients are not finite: left out, counted, reported; too many end a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastclip
from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.errors import RunError

SHOWN = 4  # names that a report lists


class BadSteps:
    """Looks at each step before it changes a weight.

    Running means and variances of normalisation layers are changed by the forward pass already:
    they are kept before it and put back after a bad step, or they would be NaN from then on.

    Args:
        model: on any device.
        limit: bad steps in a row that are left out; one more ends the run.
        folder: of the run, for the error.
        say: called with a sentence for each bad step.
    """

    def __init__(
        self, model: nn.Module, limit: int, folder: Path, say: Callable[[str], object]
    ) -> None:
        self.model, self.limit, self.folder, self.say = model, limit, folder, say
        self.total = self.in_a_row = 0
        self.buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self.before: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Before the forward pass of a step."""
        if not self.before:
            self.before = [torch.empty_like(buffer) for buffer in self.buffers]
        if self.before:
            torch._foreach_copy_(self.before, self.buffers)

    def accepts(self, step: int, losses: Tensor, norm: Tensor) -> bool:
        """Whether step number `step` may change the weights. One sync on a GPU.

        Args:
            step: from 1.
            losses: float [heads].
            norm: the norm of all gradients before clipping, a number.

        Raises:
            RunError: it is bad, and so were the `limit` steps before it.
        """
        values = torch.cat([losses.detach().flatten().float(), norm.detach().reshape(1).float()])
        *heads, norm_value = values.tolist()
        if all(map(math.isfinite, (*heads, norm_value))):
            self.in_a_row = 0
            return True
        self._put_back()
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        shown = " ".join(f"{value:.4g}" for value in heads)
        text = f"step {step} is not finite: loss {shown}, gradient norm {norm_value:.4g}"
        text += self._names()
        if self.in_a_row > self.limit:
            raise RunError(
                f"{text}. That was {self.in_a_row} in a row (--max-bad-steps {self.limit}): try a "
                f"lower --lr; the checkpoints in {printable(self.folder)} are from before, and "
                "--resume goes on from there"
            )
        self.say(f"{text}. Left out: {self.total} so far, {self.in_a_row} in a row")
        return False

    @torch.no_grad()
    def _put_back(self) -> None:
        if self.before:
            torch._foreach_copy_(self.buffers, self.before)

    def _names(self) -> str:
        report = fastclip.grad_norms(self.model)
        bad = report.nonfinite()
        if not bad:
            return ""
        more = ", ..." if len(bad) > SHOWN else ""
        count = f"{len(bad)} of {len(report.names)} gradients"
        return f"; not finite in {count}: {', '.join(bad[:SHOWN])}{more}"

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.total, self.in_a_row = int(state["total"]), int(state["in_a_row"])
