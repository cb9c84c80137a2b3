"""Fetching of images, in this process or in workers that live as long as the run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastclip.transfuse.augmentation.draws import mix_seed
from fastclip.transfuse.augmentation.workers import augment_image, published_augmentation
from fastclip.transfuse.data.samples import Samples

Key = tuple[int, list[int]]  # epoch, rows of the samples


class Batch(NamedTuple):
    """The images of one step."""

    images: Tensor  # uint8 [B, 3, H, W]
    masks: Tensor  # uint8 [B, C, H, W]; 255 in one more channel marks ignored pixels
    rows: list[int]  # of the samples


class _Rows(Dataset[Batch]):
    """Batches by (epoch, rows), so that workers outlive an epoch."""

    def __init__(self, samples: Samples, augment: bool, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.transform = published_augmentation() if augment else None

    def __getitem__(self, key: Key) -> Batch:
        epoch, rows = key
        samples = self.samples
        if self.transform is None and samples.ignored is None:
            return Batch(samples.images[rows], samples.masks[rows], rows)
        pairs = [self._pair(epoch, row) for row in rows]
        images, masks = (torch.stack(each) for each in zip(*pairs, strict=True))
        return Batch(images, masks, rows)

    def _pair(self, epoch: int, row: int) -> tuple[Tensor, Tensor]:
        image, mask = self.samples.images[row], self.samples.target(row)
        if self.transform is None:
            return image, mask
        return augment_image(self.transform, image, mask, mix_seed(self.seed, epoch, row))


class _Order:
    """The keys of one epoch after another; read by the loader as each begins."""

    def __init__(self) -> None:
        self.keys: list[Key] = []

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)


def _prepare_worker(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the trainer alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


class Fetcher:
    """The images of given rows, `fetch` by `fetch`; workers are started once.

    Args:
        samples: decoded pairs.
        seed: of the augmentation.
        augment: vary each image here, with torchvision.
        workers: processes that fetch ahead; 0 fetches in this one.
        pin: put the batches into page-locked memory, from which a GPU copies while it computes.
    """

    def __init__(
        self, samples: Samples, *, seed: int, augment: bool, workers: int, pin: bool
    ) -> None:
        self.order = _Order()
        self.loader: DataLoader[Batch] = DataLoader(
            _Rows(samples, augment, seed),
            batch_size=None,
            sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=_prepare_worker,
            # Without its own generator the loader draws a seed from the global one, which dropout
            # shares: a resumed epoch would drop other channels than an uninterrupted one.
            generator=torch.Generator(),
        )

    def fetch(self, epoch: int, batches: list[list[int]]) -> Iterator[Batch]:
        """The images of each list of rows, in this order."""
        self.order.keys = [(epoch, rows) for rows in batches]
        yield from self.loader
