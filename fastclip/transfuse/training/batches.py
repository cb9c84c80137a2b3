"""What each step sees: images in an order of (seed, epoch), on the device, varied there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastclip.transfuse.augmentation.batch import augment_batch
from fastclip.transfuse.augmentation.draws import mix_seed
from fastclip.transfuse.augmentation.scales import rescale, scale_of_step
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Samples
from fastclip.transfuse.distributed.processes import Processes
from fastclip.transfuse.training.fetch import Batch, Fetcher


def require_equal_shares(config: TrainConfig, count: int, world: int) -> None:
    """Raise ValueError where a batch does not divide by the number of processes.

    Args:
        config: whose batches are those of all processes together.
        count: training images.
        world: processes.
    """
    size = config.batch_size
    if size % world:
        raise ValueError(
            f"--batch-size {size} does not divide by {world} processes, which share it: give a "
            f"multiple of {world}"
        )
    left = count % size if count < size * config.accumulate else 0
    if left % world:
        raise ValueError(
            f"{count} training images in batches of {size} end with one of {left}, which does not "
            f"divide by {world} processes: give a smaller --batch-size, or start fewer processes"
        )


def steps_per_epoch(count: int, per_step: int) -> int:
    """Full steps in an epoch; one smaller one where there is no full one."""
    return max(1, count // per_step)


class TrainingBatches:
    """Shuffled, augmented images of every epoch of a run, those of one step at a time.

    Batch k of an epoch is the same whatever came before it, with any number of workers: what
    makes a resumed run equal to an uninterrupted one. What happens to an image is a function of
    (seed, epoch, row), whatever other images are in its batch.

    Args:
        samples: decoded pairs.
        config: the flags of batches and of augmentation.
        device: where the images are wanted.
        processes: that share the images of each step.
    """

    def __init__(
        self,
        samples: Samples,
        config: TrainConfig,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.processes = processes or Processes()
        self.count, self.per_step = len(samples), config.batch_size * config.accumulate
        self.fetcher = Fetcher(
            samples,
            seed=config.seed,
            augment=config.augment and config.augment_on == "workers",
            workers=config.workers,
            pin=device.type == "cuda",
        )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return steps_per_epoch(self.count, self.per_step)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images of each step of an epoch, from step `start` of it on.

        Yields:
            images uint8 [B, 3, H, W] and masks uint8 [B, C, H, W]; where the samples have ignored
            pixels, one more channel of the masks is above 0 there.
        """
        generator = torch.Generator().manual_seed(mix_seed(self.config.seed, epoch, -1))
        order = torch.randperm(self.count, generator=generator).tolist()
        size = self.per_step
        steps = [order[i * size : (i + 1) * size] for i in range(start, len(self))]
        rows = [self.processes.share(step, self.config.batch_size) for step in steps]
        for index, batch in enumerate(self.fetcher.fetch(epoch, rows), start):
            yield self._varied(batch, epoch, epoch * len(self) + index)

    def _varied(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        config = self.config
        images = batch.images.to(self.device, non_blocking=True)
        masks = batch.masks.to(self.device, non_blocking=True)
        if config.augment and config.augment_on == "device":
            seeds = [mix_seed(config.seed, epoch, row) for row in batch.rows]
            images, masks = augment_batch(images, masks, seeds)
        return rescale(images, masks, scale_of_step(config.multi_scale, config.seed, step))
