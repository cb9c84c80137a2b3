"""What a run shows and keeps: progress bar, lines, CSV files, curves, TensorBoard."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastclip.transfuse.data.samples import Samples, printable
from fastclip.transfuse.measuring.evaluate import Evaluation
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.recording.pictures import write_curves, write_overlays
from fastclip.transfuse.storage.files import write_csv

LOG_EVERY = 20  # steps
LOSSES_SHOWN = 40  # steps that a shown loss is the mean of


class StopSignals:
    """Within this context, Ctrl-C and SIGTERM are noted; a second one raises as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Record:
    """Rows of steps and of validations, shown as they come and kept as CSV.

    Args:
        out: folder of steps.csv, metrics.csv, curves.png and overlays.png.
        source: what the validation images are; stands beside every number.
        tensorboard: also write events.
    """

    def __init__(self, out: Path, source: str, tensorboard: bool = False) -> None:
        self.out, self.source = out, source
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self.recent: deque[Tensor] = deque(maxlen=LOSSES_SHOWN)  # each [3]
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self.writer = SummaryWriter(str(out))
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"--tensorboard needs an --out whose name is UTF-8, got {printable(out)}"
                ) from error

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(printable(line), file=sys.stdout)
        sys.stdout.flush()

    def say_all(self, lines: list[str]) -> None:
        """Print lines, equal ones once."""
        for line in dict.fromkeys(lines):
            self.say(line)

    def bar(self, epoch: int, total: int, start: int) -> StepBar:
        """The bar of one epoch, a context manager."""
        return StepBar(self, epoch, total, start)

    def validated(self, epoch: int, step: int, seconds: float, result: Evaluation) -> None:
        """Show and keep one validation."""
        self.say(f"epoch {epoch + 1}, step {step}, {seconds:.0f} s: {self.source} {result}")
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(seconds, 1),
            "data": self.source,
            "val_loss": result.loss,
            "dice": result.dice,
            "iou": result.iou,
            "accuracy": result.accuracy,
        }
        self.epochs.append(row)
        write_csv(self.out / "metrics.csv", self.epochs)
        write_csv(self.out / "steps.csv", self.steps)
        self._events("validation", row, step)

    def stepped(self, row: dict[str, Any]) -> None:
        """Keep one row of the training losses."""
        self.steps.append(row)
        self._events("train", row, row["step"])

    def pictures(self, model: TransFuse, samples: Samples) -> None:
        """Write curves.png and overlays.png."""
        if self.steps and self.epochs:
            write_curves(self.out / "curves.png", self.steps, self.epochs, self.source)
        write_overlays(self.out / "overlays.png", model, samples)
        if self.writer is not None:
            self.writer.close()

    def _events(self, kind: str, row: dict[str, Any], step: int) -> None:
        if self.writer is not None:
            for key, value in row.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"{kind}/{key}", value, step)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "steps": self.steps,
            "epochs": self.epochs,
            "recent": [losses.cpu() for losses in self.recent],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """From the checkpoint: rows after it are forgotten, as their steps are run again."""
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])
        self.recent = deque(state["recent"], maxlen=LOSSES_SHOWN)


class StepBar:
    """Progress of one epoch: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, record: Record, epoch: int, total: int, start: int) -> None:
        self.record = record
        self.live = sys.stderr.isatty()
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
        self.images += images
        if step % LOG_EVERY == 0 or len(self.record.recent) == 1:
            recent = [past.to(losses.device) for past in self.record.recent]
            map_2, map_1, map_x = torch.stack(recent).mean(dim=0).tolist()
            rate = self.images / (time.monotonic() - self.since)
            self.since, self.images = time.monotonic(), 0
            row = {"step": step, "loss_2": map_2, "loss_1": map_1, "loss_x": map_x}
            row |= {"grad_norm": float(norm), "lr": lr, "images_per_s": rate}
            self.record.stepped(row)
            text = (
                f"loss 2/1/x {map_2:.3f} {map_1:.3f} {map_x:.3f}  norm {float(norm):.2f}  "
                f"lr {lr:.1e}  {rate:.0f} images/s"
            )
            if self.live:
                self.bar.set_postfix_str(text, refresh=False)
            else:
                self.record.say(f"step {step}: {text}")
        self.bar.update()
