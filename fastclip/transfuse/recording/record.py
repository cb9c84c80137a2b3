"""What a run shows and keeps: progress bar, lines, CSV files, curves, norms, loggers."""

from __future__ import annotations

import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Samples, printable
from fastclip.transfuse.measuring.evaluate import Evaluation
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.recording.bar import StepBar
from fastclip.transfuse.recording.loggers import Loggers, open_loggers
from fastclip.transfuse.recording.norms import LayerNorms, named
from fastclip.transfuse.recording.pictures import sheet, write_curves, write_png
from fastclip.transfuse.recording.progress import Eta
from fastclip.transfuse.recording.report.write import write_cases, write_report
from fastclip.transfuse.storage.files import write_csv

# Ctrl-C, `kill` and job schedulers, and a terminal that is closed.
STOPPING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
LOSSES_SHOWN = 40  # steps that a shown loss is the mean of
SHOWN = 4  # images that loggers get at each validation


class StopSignals:
    """Within this context, Ctrl-C, SIGTERM and SIGHUP are noted; a second one raises as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                # nohup has a run ignore the end of its terminal, and that stays so.
                if signal.getsignal(number) != signal.SIG_IGN:
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
        out: folder of steps.csv, metrics.csv, norms.csv, curves.png and overlays.png.
        source: what the validation images are; stands beside every number.
        config: the flags of the run; those about recording say what else is kept.
    """

    def __init__(self, out: Path, source: str, config: TrainConfig) -> None:
        self.out, self.source, self.config = out, source, config
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self.recent: deque[Tensor] = deque(maxlen=LOSSES_SHOWN)  # each [3]
        self.loggers = Loggers({}, self.say)
        self.norms: LayerNorms | None = None
        self.device = torch.device("cpu")
        self.eta: Eta | None = None
        self._restored: dict[str, Any] | None = None

    def begin(
        self,
        model: TransFuse,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None,
        eta: Eta,
    ) -> None:
        """Watch the norms and open the loggers; after `restore`, where the run is resumed.

        Args:
            model: the network, on its device.
            optimizer: of the network.
            max_norm: the limit of clipping; None without one.
            eta: tells the time that is left.

        Raises:
            ValueError, ModuleNotFoundError: a logger does not start.
        """
        self.device = next(model.parameters()).device
        self.eta = eta
        resumed = self._restored is not None
        self.watch_norms(model, optimizer, max_norm)
        self.loggers = open_loggers(self.out, self.config, resumed, self.say)

    def watch_norms(
        self, model: TransFuse, optimizer: torch.optim.Optimizer, max_norm: float | None
    ) -> None:
        """Measure norms from now on, where --norms-every asks for it; as `begin`."""
        if self.config.norms_every:
            state = None if self._restored is None else self._restored.get("norms")
            every = self.config.norms_every
            self.norms = LayerNorms(model, optimizer, every, max_norm, state)

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
        write_csv(self.out / "metrics.csv", aligned(self.epochs))
        write_csv(self.out / "steps.csv", aligned(self.steps))
        if self.norms is not None:
            self._keep_norms()
            write_csv(self.out / "norms.csv", aligned(self.norms.rows))
        self.loggers.scalars({f"validation/{key}": value for key, value in row.items()}, step)

    def stepped(self, row: dict[str, Any]) -> None:
        """Keep one row of the training losses."""
        self.steps.append(row)
        self.loggers.scalars({f"train/{key}": value for key, value in row.items()}, row["step"])

    def observe(self, norm: Tensor, step: int) -> None:
        """After each optimizer step: the gradient norm before clipping."""
        if self.norms is not None:
            self.norms.observe(norm, step)
            self._keep_norms()

    def _keep_norms(self) -> None:
        assert self.norms is not None
        for row in self.norms.take():
            self.loggers.scalars(named(row), row["step"])

    def show(self, model: TransFuse, samples: Samples, step: int) -> None:
        """Log overlays of some samples, where there is a logger."""
        if self.loggers:
            self.loggers.image("validation/overlays", sheet(model, samples, SHOWN), step)

    def finish(
        self,
        model: TransFuse,
        samples: Samples,
        about: list[str],
        stop: Callable[[], bool],
    ) -> None:
        """Write curves.png, overlays.png and the report, and close the loggers.

        Args:
            model: as it is at the end of training.
            samples: those of the validation.
            about: what stands below the title of the report.
            stop: asked before each batch; once it says True the report goes without images.
        """
        if self.norms is not None:
            self.norms.close()
        if self.steps and self.epochs:
            write_curves(self.out / "curves.png", self.steps, self.epochs, self.source)
        write_png(self.out / "overlays.png", sheet(model, samples))
        if self.config.report and not (self.out / "best.pt").exists():
            self.say("no report: no validation gave a Dice, and so there is no best.pt")
        elif self.config.report:
            write_cases(self.out, samples, self.device, self.config.batch_size, about, stop)
            self.say(f"report: {write_report(self.out)}")
        self.loggers.close()

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "steps": self.steps,
            "epochs": self.epochs,
            "recent": [losses.cpu() for losses in self.recent],
            "norms": None if self.norms is None else self.norms.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """From the checkpoint: rows after it are forgotten, as their steps are run again."""
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])
        self.recent = deque(state["recent"], maxlen=LOSSES_SHOWN)
        self._restored = dict(state)


def aligned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of all columns that any of them has, empty where one has none."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in columns} for row in rows]
