"""Images per second of a training step beside 0, 1 and 2 busy processes, by how threads wait.

    pytest bench/bench_trainer_busy.py --benchmark-enable

The policy is read when torch is imported, so that each phase is a process of its own: this file
as a program. Phases are interleaved, and the median of each policy's counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import measure
import pytest
import torch
from bench_busy import busy_processes

pytestmark = pytest.mark.slow
BUSY = (0, 1, 2)
PHASES, PHASE_S, WARM_UP = 3, 5.0, 2
CASES = {"transfuse_t": (96, 128)}
BATCH = 16
# What libgomp, the OpenMP of torch's wheels, makes of it: a thread without work spins, or sleeps.
POLICIES = {
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
}


def train(model: str) -> float:
    """Images per second of PHASE_S seconds of steps."""
    from fastclip.transfuse import create_model
    from fastclip.transfuse.config.train import TrainConfig
    from fastclip.transfuse.data.synthetic import synthetic_samples
    from fastclip.transfuse.training.step import Learner

    torch.manual_seed(0)
    samples = synthetic_samples(BATCH, CASES[model], seed=0)
    learner = Learner(create_model(model), TrainConfig(data="", model=model, batch_size=BATCH))
    learner.begin_epoch(0)
    for number in range(WARM_UP):
        learner.step(samples.images, samples.masks, number)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < PHASE_S:
        learner.step(samples.images, samples.masks, WARM_UP + steps)
        steps += 1
    return steps * BATCH / (time.perf_counter() - start)


def phase(model: str, policy: dict[str, str]) -> float:
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {k: v for k, v in os.environ.items() if k not in unset} | policy
    command = [sys.executable, __file__, model]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("busy", BUSY)
def bench_trainer_beside_busy_processes(model, busy, benchmark):
    rates: dict[str, list[float]] = {name: [] for name in POLICIES}
    with busy_processes(busy):
        for _ in range(PHASES):
            for name, policy in POLICIES.items():
                rates[name].append(phase(model, policy))
    medians = {name: BATCH / statistics.median(found) * 1e3 for name, found in rates.items()}
    case = f"{model} {BATCH}x{CASES[model][0]}x{CASES[model][1]}, {busy} busy"
    found = measure.rows("trainer step, busy", case, "float32", medians, baseline="default")
    measure.save("trainer_busy_cpu", found)
    print()
    for name, each in rates.items():
        print(f"{case}  {name:26}" + "".join(f"{rate:8.1f}" for rate in each) + " images/s")
    benchmark.pedantic(lambda: None, rounds=1)


if __name__ == "__main__":
    print(train(sys.argv[1]))
