"""What processes that train one model together agree on, before a monitor measures with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from fastclip.ops.grad_norm.sorting import is_dtensor

WAIT = timedelta(seconds=60)  # how long ranks may come one after the other

_numbers = itertools.count()


def is_first() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def meet(parameters: Iterable[Tensor], every: int) -> None:
    """Waits until all ranks that hold pieces of these parameters are here.

    The norm of a sharded parameter is summed over its ranks: where one of them did not measure, the
    others would wait for it for ever, without a word.

    Raises:
        RuntimeError: some ranks did not come within a minute.
        ValueError: they measure at other steps.
    """
    ranks = _ranks_of(parameters)
    if len(ranks) < 2:
        return
    key = f"fastclip/NormMonitor/{next(_numbers)}"
    store = dist.distributed_c10d._get_default_store()
    store.set(f"{key}/{dist.get_rank()}", str(every))
    try:
        store.wait([f"{key}/{rank}" for rank in ranks], WAIT)
    except RuntimeError:
        away = [rank for rank in ranks if not store.check([f"{key}/{rank}"])]
        raise RuntimeError(
            "NormMonitor: the parameters are sharded, so every rank that holds some must make a "
            f"monitor, or the first measurement would hang; ranks {away} made none within "
            f"{WAIT.total_seconds():g} s. Make it on all ranks: rank 0 alone writes."
        ) from None
    steps = {rank: int(store.get(f"{key}/{rank}")) for rank in ranks}
    if len(set(steps.values())) > 1:
        raise ValueError(f"every must be the same on all ranks, got {steps} (rank: every)")


def _ranks_of(parameters: Iterable[Tensor]) -> list[int]:
    ranks: set[int] = set()
    meshes = {id(p.device_mesh): p.device_mesh for p in parameters if is_dtensor(p)}  # type: ignore[attr-defined]
    for mesh in meshes.values():
        ranks.update(mesh.mesh.flatten().tolist())
    return sorted(ranks)
