"""Images per second of the trainer's loader alone, and of the network's steps alone.

    pytest bench/bench_loader.py --benchmark-enable

The loader waits for nobody while its rate is well above the network's. Its parts are timed apart:
`fetch` runs on the host (and, with workers, beside the rest), `vary` on the device that trains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import measure
import pytest
import torch

from fastclip.transfuse import create_model
from fastclip.transfuse.augmentation.batch import augment_batch
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.synthetic import synthetic_samples
from fastclip.transfuse.training.batches import TrainingBatches
from fastclip.transfuse.training.step import Learner

pytestmark = pytest.mark.slow
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = {"transfuse_t": (96, 128), "transfuse_s": (192, 256)}
BATCH, IMAGES = 16, 64


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def endless(batches: TrainingBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for epoch in itertools.count():
        yield from batches.epoch(epoch)


@pytest.mark.parametrize("model", CASES)
def bench_loader_against_the_model(model, benchmark):
    height, width = CASES[model]
    config = TrainConfig(data="synthetic", model=model, batch_size=BATCH)
    samples = synthetic_samples(IMAGES, (height, width), seed=0)
    on_device = TrainingBatches(samples, config, DEVICE)
    in_workers = TrainingBatches(samples, TrainConfig(data="", augment_on="workers"), DEVICE)
    learner = Learner(create_model(model).to(DEVICE), config)
    learner.begin_epoch(0)
    images, masks = (x.to(DEVICE) for x in (samples.images[:BATCH], samples.masks[:BATCH]))
    loader, published = endless(on_device), endless(in_workers)

    def step():
        learner.step(images, masks, 0)
        wait()

    def load(batches=loader):
        next(batches)
        wait()

    def vary():
        augment_batch(images, masks, range(BATCH))
        wait()

    steps = {
        "model alone": step,
        "loader alone": load,
        "fetch": lambda: next(on_device.fetcher.fetch(0, [list(range(BATCH))])),
        "vary": vary,
        "loader of torchvision's transforms": lambda: load(published),
    }
    medians = measure.interleaved_ms(steps, repeats=9, warmup=2)
    case = f"{model} {BATCH}x{height}x{width}"
    measure.save("loader", measure.rows("loader", case, "uint8", medians, baseline="model alone"))
    print()
    for name, ms in medians.items():
        share = ms / medians["model alone"]
        print(f"{case}  {name:36}{BATCH / ms * 1e3:9.0f} images/s {share:8.1%} of a step")
    benchmark.pedantic(load, rounds=1)
