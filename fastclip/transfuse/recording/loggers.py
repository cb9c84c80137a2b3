"""Where numbers and pictures of a run go beside its files: TensorBoard, wandb, trackio."""

from __future__ import annotations

import importlib
import math
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastclip.transfuse.config.recording import RecordingConfig
from fastclip.transfuse.data.samples import printable

WANDB_ID = "wandb-id.txt"  # of the run in --out, so that a resumed part continues it


class Logger(Protocol):
    """What a run needs of a logger; write a class with these methods to add one."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep numbers under names such as train/loss_2; every one is finite."""

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Keep a picture, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Write what is left; nothing is logged after it."""


class TensorBoard:
    """Events in the run's own folder.

    Raises:
        ValueError: the folder's name is not UTF-8, which TensorBoard needs.
    """

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.writer = SummaryWriter(str(out))
        except UnicodeEncodeError as error:
            raise ValueError(
                f"--tensorboard needs an --out whose name is UTF-8, got {printable(out)}"
            ) from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run's folder.

    Args:
        out: folder of the run; its name is the run's, and it keeps the id that resuming needs.
        project: the project that it belongs to.
        config: shown beside the curves.
    """

    def __init__(self, out: Path, project: str, config: Mapping[str, Any]) -> None:
        wandb = _package("wandb")
        file = out / WANDB_ID
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        self.as_image: Callable[..., Any] = wandb.Image
        self.run = wandb.init(
            project=project,
            name=printable(out.name),
            id=file.read_text().strip(),
            resume="allow",
            dir=str(out),
            config=dict(config),
        )
        # wandb's own step only grows; a resumed run repeats the steps since its checkpoint.
        self.run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.run.log({name: self.as_image(pixels), "step": step})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of trackio, kept on this machine (in $TRACKIO_DIR).

    Args:
        out: folder of the run; its name is the run's.
        project: the project that it belongs to.
        config: shown beside the curves.
        resume: go on with the run of that name.
    """

    def __init__(self, out: Path, project: str, config: Mapping[str, Any], resume: bool) -> None:
        trackio = _package("trackio")
        self.as_image: Callable[..., Any] = trackio.Image
        self.run = trackio.init(
            project=project,
            name=printable(out.name),
            config=dict(config),
            resume="allow" if resume else "never",
            embed=False,
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.run.log({name: self.as_image(pixels)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Loggers:
    """Several loggers as one: a logger that fails is named once, and stops no training.

    Args:
        loggers: by the names that a message gives them.
        say: prints a line for the user.
    """

    def __init__(self, loggers: Mapping[str, Logger], say: Callable[[str], None]) -> None:
        self.loggers, self.say = dict(loggers), say

    def __bool__(self) -> bool:
        return bool(self.loggers)

    def scalars(self, values: Mapping[str, object], step: int) -> None:
        """Log the finite floats of a row under their names; what else it holds is left out."""
        finite = {k: v for k, v in values.items() if isinstance(v, float) and math.isfinite(v)}
        if finite:
            self._each(lambda logger: logger.scalars(finite, step))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log a picture, uint8 [H, W, 3]."""
        self._each(lambda logger: logger.image(name, pixels, step))

    def close(self) -> None:
        """Close all of them."""
        self._each(lambda logger: logger.close())
        self.loggers.clear()

    def _each(self, work: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                work(logger)
            except Exception as error:  # a full disk, a lost network: any class of error
                del self.loggers[name]
                reason = printable(str(error) or type(error).__name__)
                self.say(f"{name} failed and is left out from here on: {reason}")


def open_loggers(
    out: Path,
    config: RecordingConfig,
    flags: Mapping[str, Any],
    resume: bool,
    say: Callable[[str], None],
) -> Loggers:
    """The loggers that the flags of a run ask for.

    Args:
        out: folder of the run.
        config: which ones.
        flags: all flags of the run, to show beside its curves.
        resume: go on with what the loggers have of the run.
        say: prints a line for the user.

    Raises:
        ModuleNotFoundError: a logger is not installed.
        ValueError: it does not start.
    """
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()}
    started: dict[str, Logger] = {}
    if config.tensorboard:
        started["TensorBoard"] = TensorBoard(out)
    if config.wandb:
        started["wandb"] = _start("wandb", lambda: Wandb(out, config.project, plain))
    if config.trackio:
        start = partial(Trackio, out, config.project, plain, resume)
        started["trackio"] = _start("trackio", start)
    return Loggers(started, say)


def _start(flag: str, start: Callable[[], Logger]) -> Logger:
    try:
        return start()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # not logged in, no network: classes of their own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--{flag} does not start: {printable(first)}") from error


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--{name} needs {error.name}: pip install {name}", name=error.name
        ) from error
