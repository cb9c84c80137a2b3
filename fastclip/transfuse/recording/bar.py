"""Progress of an epoch, on a terminal and elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from fastclip.transfuse.recording.progress import duration, memory_mib, memory_text

if TYPE_CHECKING:
    from fastclip.transfuse.recording.record import Record

LOG_EVERY = 20  # steps


class StepBar:
    """Progress of one epoch: a bar on a terminal, a line now and then elsewhere."""

    def __init__(
        self, record: Record, epoch: int, total: int, start: int, live: bool | None = None
    ) -> None:
        self.record = record
        self.live = sys.stderr.isatty() if live is None else live
        label = f"epoch {epoch + 1}"
        self.bar = tqdm(total=total, initial=start, desc=label, disable=not self.live, leave=False)
        self.since, self.images = time.monotonic(), 0

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def step(self, step: int, losses: Tensor, norm: Tensor, lr: float, images: int) -> None:
        """After each optimizer step: losses of map_2, map_1, map_x [3] and the gradient norm."""
        self.record.recent.append(losses)
        self.record.observe(norm, step)
        self.images += images
        if step % LOG_EVERY == 0 or len(self.record.recent) == 1:
            recent = [past.to(losses.device) for past in self.record.recent]
            map_2, map_1, map_x = torch.stack(recent).mean(dim=0).tolist()
            rate = self.images / (time.monotonic() - self.since)
            self.since, self.images = time.monotonic(), 0
            row = {"step": step, "loss_2": map_2, "loss_1": map_1, "loss_x": map_x}
            row |= {"grad_norm": float(norm), "lr": lr, "images_per_s": rate}
            memory = memory_mib(self.record.device)
            row["memory_mib"] = math.nan if memory is None else memory
            self.record.stepped(row)
            text = (
                f"loss 2/1/x {map_2:.3f} {map_1:.3f} {map_x:.3f}  norm {float(norm):.2f}  "
                f"lr {lr:.1e}  {rate:.0f} images/s"
            )
            text += "" if memory is None else f"  {memory_text(memory)}"
            left = None if self.record.eta is None else self.record.eta.seconds(step)
            text += "" if left is None else f"  {duration(left)} left"
            if self.live:
                self.bar.set_postfix_str(text, refresh=False)
            else:
                self.record.say(f"step {step}: {text}")
        self.bar.update()

    def skip(self) -> None:
        """After a step that was left out: it is counted and enters no mean."""
        self.bar.update()
