"""Entering and leaving the processes of a run; of a failure one of them tells the user."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.distributed.group import Group
from fastclip.transfuse.distributed.launch import read_launch
from fastclip.transfuse.distributed.processes import Processes
from fastclip.transfuse.errors import LostProcess, RunError, UsageError, usage_errors
from fastclip.transfuse.safety.failures import explained

TOLD = "told"  # key of the store: a process has told the user what went wrong
# Whose error is the cause speaks first: the main process, another one, one that lost another.
PATIENCE_S = (0.0, 2.0, 4.0)
LOOK_EVERY_S = 0.05


@contextlib.contextmanager
def joined(config: TrainConfig) -> Iterator[Processes]:
    """The processes that this one was started with, until the end of the block.

    An error in one of them ends all: they lose it in their next step together. The user reads one
    sentence, of the process where it began.

    Args:
        config: says the device, whether the network is sharded, and how long a process waits for
            another one.

    Raises:
        UsageError: the environment holds a part of what torchrun sets, or the device is absent.
        SystemExit: with the exit code, where another process tells what went wrong.
    """
    with usage_errors():
        launch = read_launch()
    if launch is None:
        yield Processes()
        return
    with usage_errors(), explained():
        kind = _sharded() if config.fsdp else Group
        group = kind(launch, config.device, 60 * config.ddp_timeout)
    try:
        yield group
    except (RunError, UsageError) as error:
        if not _tells(group, error):
            raise SystemExit(error.exit_code) from error
        if group.main or isinstance(error, LostProcess):
            raise
        raise type(error)(f"process {group.rank} of {group.world}: {error}") from error
    group.leave()


def _sharded() -> type[Group]:
    from fastclip.transfuse.distributed.sharded import ShardedGroup  # what else nobody loads

    return ShardedGroup


def _tells(group: Group, error: Exception) -> bool:
    """Whether this process is the one that tells the user of its error."""
    kind = 2 if isinstance(error, LostProcess) else int(not group.main)
    with _undisturbed(), contextlib.suppress(dist.DistError, RuntimeError):
        end = time.monotonic() + PATIENCE_S[kind]
        while time.monotonic() < end:
            if group.attempt.check([TOLD]):
                return False
            time.sleep(LOOK_EVERY_S)
        return group.attempt.add(TOLD, 1) == 1
    return True  # the store has gone with its process


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Without SIGTERM: torchrun sends it to the other processes as soon as one has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
