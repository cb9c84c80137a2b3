"""Several processes as one run: DistributedDataParallel, and decisions that all of them share."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastclip.transfuse.augmentation.draws import mix_seed
from fastclip.transfuse.config.checks import torch_device
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.distributed.batch_norm import synchronised
from fastclip.transfuse.distributed.launch import Launch
from fastclip.transfuse.distributed.processes import Processes
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.safety import run_files

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
FOLDER = "fastclip/folder"  # key of the store: where this launch has begun a run
CPU = torch.device("cpu")


class Group(Processes):
    """The processes of a launch.

    Small decisions go through the processors (gloo), in a group of their own: they wait for no
    GPU, and their failure is an error of Python's in every process.

    Args:
        launch: that this process is part of.
        device: of --device.
        timeout_s: how long to wait for a process that does not answer.

    Raises:
        ValueError: no such device, or fewer GPUs than processes on this machine.
        RuntimeError: the processes do not find each other.
    """

    def __init__(self, launch: Launch, device: str, timeout_s: float) -> None:
        self.rank, self.world, self.launch = launch.rank, launch.world, launch
        self._device = _device(device, launch)
        timeout = timedelta(seconds=timeout_s)
        server = self.main and not launch.agent
        # Without `world_size`, which would have it wait for as many clients.
        self.store: dist.Store = dist.TCPStore(
            launch.host, launch.port, is_master=server, timeout=timeout, wait_for_workers=False
        )
        # What an earlier attempt has left in the store is not of this one.
        self.attempt = dist.PrefixStore(
            f"fastclip/attempt-{launch.restarts}-of-{launch.world}", self.store
        )
        cuda = self._device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=self.attempt,
            rank=self.rank,
            world_size=self.world,
            # The smaller group is to be the first that gives up: its error is readable.
            timeout=2 * timeout,
            device_id=self._device if cuda else None,
        )
        self.control: Any = dist.new_group(backend="gloo", timeout=timeout)

    def leave(self) -> None:
        """End the group; of this process alone."""
        dist.destroy_process_group()

    def device(self, name: str) -> torch.device:
        return self._device

    def continued(self, config: TrainConfig) -> TrainConfig:
        """As the base class says; the folder is this launch's only where it has begun a run."""
        found = self.from_main(self._begun)
        if found is None:
            return config
        out, resume = found
        self.on_main(lambda: print(f"the processes were started again, in {printable(out)}"))
        return replace(config, out=out, resume=resume, overwrite=not resume)

    def _begun(self) -> tuple[Path, bool] | None:
        """The folder of an earlier attempt, and whether there is a checkpoint to go on from."""
        if not self.store.check([FOLDER]):
            return None
        out = Path(self.store.get(FOLDER).decode())
        return out, any(file.suffix == ".pt" for file in run_files.results(out))

    def began(self, folder: Path) -> None:
        if self.main:
            self.store.set(FOLDER, str(folder.absolute()))

    def from_main(self, make: Callable[[], T]) -> T:
        values = [make() if self.main else None]
        dist.broadcast_object_list(values, src=0, group=self.control, device=CPU)
        value: Any = values[0]
        return value

    def gathered(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        self.gathered(None)

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        known = torch.tensor([float(stop), seconds if self.main else 0.0], dtype=torch.float64)
        dist.all_reduce(known, op=dist.ReduceOp.MAX, group=self.control)
        return bool(known[0]), float(known[1])

    def mean(self, values: Tensor) -> Tensor:
        values = values / self.world
        dist.all_reduce(values)
        return values

    def share(self, rows: list[int], batch_size: int) -> list[int]:
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        mine: list[int] = []
        for batch in batches:
            size = len(batch) // self.world
            mine += batch[self.rank * size : (self.rank + 1) * size]
        return mine

    def seed_step(self, seed: int, step: int) -> None:
        # -2 is the seed of a step's scale, which all processes share.
        torch.manual_seed(mix_seed(seed, step, -3 - self.rank))

    def replicate(self, model: nn.Module) -> None:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)

    def complete(self, model: TransFuse) -> TransFuse:
        self.replicate(model)
        return model

    def normalised(self, model: M) -> M:
        return synchronised(model, self._device)

    def parallel(self, model: nn.Module, sync_bn: bool) -> nn.Module:
        gc.collect()  # the hooks of an earlier one, which go with it
        # Without sync_bn each process has running statistics of its own, and the main one's count.
        return DistributedDataParallel(model, broadcast_buffers=not sync_bn)

    def accumulating(self, network: Any, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else network.no_sync()


def _device(name: str, launch: Launch) -> torch.device:
    device = torch_device(name)
    if device.type == "cpu" or launch.world == 1:
        return device
    if device.type != "cuda":
        raise ValueError(f"--device {device.type} trains in one process: give --device cpu")
    count = torch.cuda.device_count()
    if launch.local_rank >= count:
        raise ValueError(
            f"{launch.local_world} processes on this machine, and {count} GPU(s): give torchrun "
            f"--nproc-per-node={count}, or --device cpu"
        )
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)
