"""Flags about the network and the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastclip.transfuse.config.checks import image_size


@dataclass(kw_only=True)
class NetworkConfig:
    """The network, its input size, and the weights that it starts from."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ("model", "size")

    model: str = "transfuse_s"
    """transfuse_t (small, for a CPU), transfuse_s, transfuse_l or transfuse_l_384."""
    size: str | None = None
    """Training size HxW, both divisible by 16, e.g. 96x128; None is the model's own."""
    pretrained: bool = False
    """Start both backbones from ImageNet weights (downloaded once, or from the two files)."""
    resnet_weights: Path | None = None
    """torchvision ResNet checkpoint for the CNN branch, instead of a download."""
    deit_weights: Path | None = None
    """DeiT checkpoint for the transformer branch, instead of a download."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        image_size(self.size, self.model)
