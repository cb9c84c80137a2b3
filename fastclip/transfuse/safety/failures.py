"""What a machine may refuse in the middle of the work, in one sentence with the way out."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.errors import LostProcess, RunError

# torch's texts: its CPU allocator, the drivers, and the loader's report of a worker's death.
CPU_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
DEVICE = ("CUDA error", "HIP error", "cuDNN error", "CUBLAS_STATUS", "MPS backend", "NCCL error")
WORKER = "DataLoader worker"
# What gloo and the store of torch.distributed say of a process that is gone or silent.
PEERS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(after: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn lack of memory, a full disk and a lost device into RunError with one sentence.

    Args:
        after: gives what stands and how to go on, for the end of the sentence.
    """
    try:
        yield
    except (RunError, KeyboardInterrupt):
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        kind = LostProcess if _lost(error) else RunError
        text = _sentence(error)
        if text is None:
            raise
        end = after()
        raise kind(f"{text}; {end}" if end else text) from error


def _lost(error: Exception) -> bool:
    """Whether it says that another process of the run is gone or silent."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in PEERS)


def _sentence(error: Exception) -> str | None:
    """What happened and what helps; None for a fault of the program."""
    text = printable((str(error).splitlines() or [type(error).__name__])[0])
    if _lost(error):
        return f"another process of the run has ended, or does not answer ({text})"
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device is out of memory ({text}): try a smaller --batch-size or --size"
    if isinstance(error, MemoryError) or any(part in str(error) for part in CPU_MEMORY):
        return f"out of memory ({text}): try a smaller --batch-size or --size, or --cache FOLDER"
    if isinstance(error, OSError):
        if error.errno not in FULL:
            return None
        return f"the disk is full ({text}): make room"
    if WORKER in str(error):
        return (
            f"a process that loads images has died ({text}): out of memory, most likely; try "
            "fewer --workers"
        )
    if isinstance(error, torch.AcceleratorError) or any(part in str(error) for part in DEVICE):
        return f"the device has failed ({text}): look at its driver's log, or restart the machine"
    return None
