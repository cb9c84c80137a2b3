"""What the processes of a run do together; of a run in one process, what that process does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastclip.transfuse.config.checks import torch_device
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.network.model import TransFuse

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class Processes:
    """The one process of a run that was started alone; `Group` is several.

    All processes call the same methods in the same order, but for `main`, `world` and `on_main`.

    Attributes:
        rank: of this process. The one of rank 0 is the main process: it alone writes and speaks.
        world: the number of processes.
        sharded: whether each holds a part of the network, of its gradients and of the optimizer.
    """

    rank = 0
    world = 1
    sharded = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process that --device asks for."""
        return torch_device(name)

    def continued(self, config: TrainConfig) -> TrainConfig:
        """The flags, of a run that goes on where a launcher has started it again."""
        return config

    def began(self, folder: Path) -> None:
        """Note that what lies in the folder is this run's, for `continued`."""

    def on_main(self, work: Callable[[], object]) -> None:
        """Do something in the main process only; nobody waits for it."""
        if self.main:
            work()

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, in every process."""
        return make()

    def gathered(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        return [value]

    def wait(self) -> None:
        """Go on when all processes have come here."""

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process is to stop, and the main process's clock."""
        return stop, seconds

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes of values on their devices."""
        return values

    def share(self, rows: list[int], batch_size: int) -> list[int]:
        """The rows of this process among those of a step, batch by batch.

        Args:
            rows: of a step; its batches divide by the number of processes.
            batch_size: of all processes together.
        """
        return rows

    def seed_step(self, seed: int, step: int) -> None:
        """Let dropout draw other numbers in each process, the same ones in a resumed run."""

    def replicate(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of the main one."""

    def normalised(self, model: M) -> M:
        """A network whose batch norms see the batch of all processes."""
        return model

    def divide(self, model: TransFuse) -> None:
        """Leave each process its part of the parameters, in place, where the run is sharded."""

    def complete(self, model: TransFuse) -> TransFuse:
        """A network to measure in each process by itself: its weights are whole there.

        Its running statistics are those of the main process.
        """
        return model

    def whole(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state in nested dicts, whole in the main process; the others may lack parts of it."""
        return state

    def parts(self, weights: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
        """Whole weights as the model of this process takes them."""
        return weights

    def optimizer_parts(
        self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer
    ) -> Mapping[str, Any]:
        """The whole state of an optimizer as the one of this process takes it."""
        return state

    def parallel(self, model: nn.Module, sync_bn: bool) -> nn.Module:
        """What to call for a forward pass whose gradients become the mean over processes."""
        return model

    def accumulating(self, network: Any, last: bool) -> AbstractContextManager[object]:
        """Round forward and backward pass of one of several batches of a step."""
        return nullcontext()
