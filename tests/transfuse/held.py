"""`fastclip` whose processes say after each step how many numbers they hold: held.py train ...

A line of JSON each: of weights, gradients, optimizer and average, here and in all processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import torch

from fastclip.cli import main
from fastclip.transfuse.training.step import Learner


def counted(tensors: Iterable[Any]) -> tuple[int, int]:
    """Numbers that lie here, and all of them."""
    found = list(tensors)
    local = [t.to_local() if hasattr(t, "to_local") else t for t in found]
    # Gradients of a block are views of one storage.
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
    return sum(storages.values()) // local[0].itemsize, sum(t.numel() for t in found)


def report(learner: Any) -> None:
    parameters = learner.parameters
    held = {
        "weights": parameters,
        "gradients": [p.grad for p in parameters],
        "optimizer": [learner.optimizer.state[p]["exp_avg"] for p in parameters],
        "average": learner.average.module.parameters(),
    }
    # One write: lines of other processes come between two.
    sys.stdout.write(json.dumps({name: counted(t) for name, t in held.items()}) + "\n")
    sys.stdout.flush()


def install() -> None:
    inner = Learner.step

    def step(self: Any, *arguments: Any) -> Any:
        result = inner(self, *arguments)
        report(self)
        return result

    Learner.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    install()
    sys.exit(main(sys.argv[1:]))
