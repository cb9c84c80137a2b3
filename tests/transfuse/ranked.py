"""`fastclip` with a fault in one of its processes: ranked.py FAULT RANK STEP train ...

The fault comes as that process begins that step, from 0, in the first attempt of torchrun.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch

from fastclip.cli import main
from fastclip.transfuse.training.step import Learner


def fail(fault: str, images: torch.Tensor) -> None:
    """Do what the fault's name says."""
    if fault == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    if fault == "bug":
        raise TypeError("a fault of the program")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(600)
    if fault == "term":
        os.kill(os.getpid(), signal.SIGTERM)


def install(fault: str, rank: int, at: int) -> None:
    """Let `Learner.step` fail."""
    inner = Learner.step

    def step(self: Any, images: torch.Tensor, masks: torch.Tensor, number: int) -> Any:
        if number == at:
            fail(fault, images)
            if fault == "nan":
                with torch.no_grad():
                    kept = self.model.final_2[1].conv.weight.clone()
                    self.model.final_2[1].conv.weight.fill_(torch.nan)
                result = inner(self, images, masks, number)
                with torch.no_grad():
                    self.model.final_2[1].conv.weight.copy_(kept)
                return result
        return inner(self, images, masks, number)

    if int(os.environ["RANK"]) == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Learner.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    install(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
