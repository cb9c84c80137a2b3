"""Where a step of the trainer goes, with fastclip's functions and with torch's own.

    pytest bench/bench_trainer_step.py --benchmark-enable

The same network, images and seeds; only the loss and the clip differ. A GPU is waited for after
each phase. By the norm fastclip clips within the optimizer's step: both are one phase.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager

import measure
import pytest
import torch

from fastclip.transfuse import create_model
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.synthetic import synthetic_samples
from fastclip.transfuse.training.step import Learner

pytestmark = pytest.mark.slow
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = {"transfuse_t": (96, 128), "transfuse_s": (192, 256)}
BATCH, ROUNDS, WARM_UP = 16, 7, 2


class Clock:
    """Milliseconds of each phase of one step after another."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def phase(self, name: str):
        start = time.perf_counter()
        yield
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        merged = "clip and optimizer" if name in ("clip", "optimizer") else name
        self.steps[-1][merged] += (time.perf_counter() - start) * 1e3

    def medians(self) -> dict[str, float]:
        names = self.steps[-1]
        return {n: statistics.median(s[n] for s in self.steps[WARM_UP:]) for n in names}


def learner(model: str, reference: bool) -> Learner:
    torch.manual_seed(0)
    config = TrainConfig(data="", model=model, batch_size=BATCH, reference_ops=reference)
    made = Learner(create_model(model).to(DEVICE), config)
    made.begin_epoch(0)
    return made


@pytest.mark.parametrize("model", CASES)
def bench_phases_of_a_step(model, benchmark):
    samples = synthetic_samples(BATCH, CASES[model], seed=0)
    images, masks = samples.images.to(DEVICE), samples.masks.to(DEVICE)
    clocks = {"fastclip": Clock(), "torch": Clock()}
    learners = {name: learner(model, reference=name == "torch") for name in clocks}
    order = list(clocks)
    for number in range(WARM_UP + ROUNDS):
        random.Random(number).shuffle(order)
        for name in order:
            clocks[name].steps.append(defaultdict(float))
            learners[name].measure(clocks[name].phase)
            learners[name].step(images, masks, number)
    ours, theirs = (clocks[name].medians() for name in ("fastclip", "torch"))
    case = f"{model} {BATCH}x{CASES[model][0]}x{CASES[model][1]}"
    for times in (ours, theirs):
        times["step"] = sum(times.values())
    print()
    for phase, ms in ours.items():
        pair = {"torch": theirs[phase], "fastclip": ms}
        found = measure.rows("trainer step", f"{case}, {phase}", "float32", pair, baseline="torch")
        measure.save("trainer_step", found)
        print(f"{case}  {phase:20} torch {theirs[phase]:9.2f} ms  fastclip {ms:9.2f} ms")
    benchmark.pedantic(lambda: None, rounds=1)
