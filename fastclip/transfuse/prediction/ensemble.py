"""Probabilities by one network or several, each seen from one side or from many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.transfuse.config.checks import image_size
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import Size
from fastclip.transfuse.network.model import PATCH, TransFuse
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.storage.checkpoint import load_model, trained_config

Tta = Literal["none", "flips", "scales", "flips+scales"]
NO_PREDICTION = (
    "the network gives NaN or infinity, which is no prediction; its weights are damaged, or its "
    "training diverged: take an earlier checkpoint"
)
FLIPS = ((), (3,), (2,), (2, 3))  # axes of [B, C, H, W]


@dataclass(frozen=True)
class Member:
    """A network in eval mode, and the size that it sees images at."""

    model: TransFuse
    size: Size


class Ensemble:
    """The mean probability over members, and over the views of test-time augmentation.

    Args:
        members: at least one, all of the same number of maps.
        tta: 'flips' adds the three mirror images to each image, 'scales' other sizes.
        scales: factors of the size, with 'scales'; sides go to the nearest multiple of 16.

    Raises:
        ValueError: no member, or members of different numbers of maps.
    """

    def __init__(
        self, members: Sequence[Member], tta: Tta = "none", scales: Sequence[float] = (1.0,)
    ) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one network")
        counts = [member.model.num_classes for member in members]
        if len(set(counts)) > 1:
            raise ValueError(f"maps to average must be as many of each network, got {counts}")
        self.members = list(members)
        self.flips = FLIPS if "flips" in tta else FLIPS[:1]
        self.scales = tuple(scales) if "scales" in tta else (1.0,)

    @property
    def classes(self) -> int:
        """Maps of each prediction."""
        return self.members[0].model.num_classes

    @property
    def sizes(self) -> list[Size]:
        """Sizes at which images are asked for, each once."""
        return list(dict.fromkeys(member.size for member in self.members))

    def to(self, device: torch.device) -> Ensemble:
        """Move the networks."""
        for member in self.members:
            member.model.to(device)
        return self

    @torch.no_grad()
    def logits(self, images: Mapping[Size, Tensor]) -> list[Tensor]:
        """One map per view.

        Args:
            images: the same batch, uint8 [B, 3, H, W], at each of `sizes`.

        Returns:
            float32 [B, C, h, w] of each view, turned back but of the view's size, on the device of
            the networks.
        """
        device = next(self.members[0].model.parameters()).device
        batches = {size: normalise(images[size].to(device)) for size in self.sizes}
        maps = []
        for member in self.members:
            for scale in self.scales:
                seen = _scaled(batches[member.size], scale)
                for axes in self.flips:
                    logits = member.model(seen.flip(axes))[2]
                    maps.append(logits.float().flip(axes))
        return maps


def _scaled(images: Tensor, scale: float) -> Tensor:
    """[B, 3, H, W] at the multiples of 16 that are nearest to `scale` times H and W."""
    old = images.shape[-2:]
    size = [max(PATCH, round(side * scale / PATCH) * PATCH) for side in old]
    if list(old) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def mean_probability(logits: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Probabilities of one image at `size`: the mean of those of its views.

    Args:
        logits: [C, h, w] of each view.
        size: H and W of the result.

    Returns:
        float32 [C, H, W].
    """
    total: Tensor | None = None
    for view in logits:
        if tuple(view.shape[-2:]) != tuple(size):
            view = F.interpolate(view[None], tuple(size), mode="bilinear", align_corners=False)[0]
        total = view.sigmoid() if total is None else total.add_(view.sigmoid())
    assert total is not None
    return total if len(logits) == 1 else total.div_(len(logits))


def load_ensemble(
    files: Sequence[Path],
    model: str | None = None,
    size: str | None = None,
    tta: Tta = "none",
    scales: Sequence[float] = (1.0,),
) -> tuple[Ensemble, list[TrainConfig]]:
    """The networks of checkpoints or state dicts, in eval mode on the CPU; how each was trained.

    Args:
        files: at least one.
        model: name of the network, for state dicts that do not tell.
        size: HxW that all of them see images at; None is what each was trained at.
        tta: as for `Ensemble`.
        scales: as for `Ensemble`.

    Raises:
        CheckpointError: a file cannot be used.
        ValueError: no file, maps that differ in number, or a wrong size.
    """
    members, configs = [], []
    for file in files:
        network, content = load_model(file, model)
        trained = trained_config(content)
        members.append(Member(network, image_size(size or trained.size, content["model"])))
        configs.append(trained)
    return Ensemble(members, tta, scales), configs
