"""Augmentation as published, and batches whose randomness is a function of (seed, epoch, row)."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fastclip.transfuse.data.samples import Samples


def published_augmentation() -> v2.Transform:
    """Shift and scale by up to 15 %, rotation by up to 25 degrees, colour jitter, flips."""
    affine = v2.RandomAffine(degrees=25, translate=(0.15, 0.15), scale=(0.85, 1.15))
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2)
    return v2.Compose(
        [
            v2.RandomApply([affine], p=0.5),
            v2.RandomApply([jitter], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
        ]
    )


def mix_seed(seed: int, epoch: int, row: int) -> int:
    """One 63-bit seed of three numbers."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + row + 1) % (1 << 63)


class _Epoch(Dataset[tuple[Tensor, Tensor]]):
    """Samples of one epoch, each augmented from its own seed."""

    def __init__(self, samples: Samples, augment: bool, seed: int, epoch: int) -> None:
        self.samples, self.seed, self.epoch = samples, seed, epoch
        self.transform = published_augmentation() if augment else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image, mask = self.samples.images[row], self.samples.target(row)
        if self.transform is None:
            return image, mask
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed, self.epoch, row))
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the trainer alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in an epoch; one smaller batch where there is no full one."""
    return max(1, count // batch_size)


def train_batches(
    samples: Samples,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    augment: bool = True,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches of one epoch, from batch `start` on.

    Batch k of an epoch is the same whatever came before it, with any number of workers: what
    makes a resumed run equal to an uninterrupted one.

    Yields:
        images uint8 [B, 3, H, W] and masks uint8 [B, C, H, W]; where the samples have ignored
        pixels, 255 in one more channel of the masks marks them.
    """
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch, -1))
    order = torch.randperm(len(samples), generator=generator).tolist()
    batches = [
        order[i * batch_size : (i + 1) * batch_size]
        for i in range(start, steps_per_epoch(len(samples), batch_size))
    ]
    loader = DataLoader(
        _Epoch(samples, augment, seed, epoch),
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=_ignore_interrupt,
        # Without its own generator the loader draws a seed from the global one, which dropout
        # shares: a resumed epoch would then drop other channels than an uninterrupted one.
        generator=torch.Generator().manual_seed(mix_seed(seed, epoch, -1)),
    )
    yield from loader
