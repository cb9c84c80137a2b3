"""What the command line asks for: one dataclass per subcommand, checked before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastclip.transfuse.config_data import DataConfig
from fastclip.transfuse.model import architecture, check_size


class UsageError(Exception):
    """Wrong arguments or data: one line for the user, exit code 2."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what wrong arguments and files raise into UsageError; for set-up code only."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(str(error)) from error


Split = Literal["train", "val", "test", "all"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(kw_only=True)
class TrainConfig(DataConfig):
    """Train a TransFuse; the defaults are those of the published trainer."""

    data: str | tuple[str, ...] = "synthetic"
    """Folder or folders of images and masks in any layout of docs/data.md, e.g. images/ and masks/
    alone or in train/ and val/; a .csv or .txt of image,mask[,split]; a COCO .json; or the word
    'synthetic' for lesion-like images made on the fly."""
    model: str = "transfuse_s"
    """transfuse_t (small, for a CPU), transfuse_s, transfuse_l or transfuse_l_384."""
    size: str | None = None
    """Training size HxW, both divisible by 16, e.g. 96x128; None is the model's own."""
    out: Path | None = None
    """Folder for checkpoints, CSV files and pictures; None is runs/<model>-<date>-<time>."""
    epochs: int = 25
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, if that comes before the last epoch."""
    max_time: float | None = None
    """Stop after this many minutes, if that comes first.
    The decay is then completed by the clock; the last validation and the pictures come on top."""
    batch_size: int = 16
    """Images per step; an incomplete last batch is left out."""
    lr: float = 7e-5
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam: betas 0.5, 0.999, as published. adamw: betas 0.9, 0.999."""
    weight_decay: float = 0.0
    """Weight decay of matrices and filters; norms, biases and pos_embed never decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or down to zero at the end."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    clip_norm: float = 2.0
    """Gradient norm to clip to, at every step; inf never clips."""
    augment: bool = True
    """Shift, scale, rotation, colour jitter and flips of the training images."""
    val_fraction: float = 0.1
    """Share of the images held out where the data has no val of its own; a name stays on its side
    when others are added."""
    synthetic_images: int = 512
    """Training images of --data synthetic; an eighth as many are made for validation."""
    pretrained: bool = False
    """Start both backbones from ImageNet weights (downloaded once, or from the two files)."""
    resnet_weights: Path | None = None
    """torchvision ResNet checkpoint for the CNN branch, instead of a download."""
    deit_weights: Path | None = None
    """DeiT checkpoint for the transformer branch, instead of a download."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16 runs the network under autocast; loss, gradients and weights stay float32.
    auto takes bf16 where the device computes in it."""
    seed: int = 0
    """Seed of weights, order, augmentation, dropout, split and synthetic images."""
    workers: int = 0
    """Processes that augment; the images themselves are kept decoded in memory."""
    device: Device = "auto"
    """auto takes a GPU where there is one."""
    resume: bool = False
    """Continue the run in --out from its last.pt, exactly; give the same other arguments."""
    overwrite: bool = False
    """Allow --out to hold an earlier run, and replace it."""
    tensorboard: bool = False
    """Also write TensorBoard events to --out."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        image_size(self.size, self.model)
        self.read_options()
        for name in ("epochs", "batch_size", "synthetic_images"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "workers", "seed"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("max_steps", "max_time"):
            value = getattr(self, name)
            _require(name, value, value is None or value > 0, "more than 0")
        _require("lr", self.lr, 0 < self.lr < math.inf, "positive and finite")
        _require("clip_norm", self.clip_norm, self.clip_norm > 0, "more than 0 (inf never clips)")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _require("val_fraction", self.val_fraction, 0 < self.val_fraction < 1, "between 0 and 1")
        if self.resume and self.out is None:
            raise ValueError("--resume needs the --out of the run to continue")
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite replaces it: give one")


@dataclass(kw_only=True)
class EvaluateConfig(DataConfig):
    """Loss, Dice, IoU and accuracy of a checkpoint on a data set.

    Masks are read as in training, unless any flag about masks is given.
    """

    checkpoint: Path
    """best.pt or last.pt of a run, or a state dict."""
    model: str | None = None
    """Name of the network, for a state dict that does not tell."""
    split: Split = "val"
    """Which part of the data; 'all' takes data without train and val whole."""
    size: str | None = None
    """HxW to evaluate at; None is the size of training."""
    batch_size: int = 16
    """Images at a time."""
    csv: Path | None = None
    """Also write one row per image to this file."""
    device: Device = "auto"
    """auto takes a GPU where there is one."""


@dataclass(kw_only=True)
class PredictConfig:
    """Write a mask and an overlay, both PNG, for every image."""

    checkpoint: Path
    """best.pt or last.pt of a run, or a state dict."""
    images: tuple[str, ...]
    """Images of any sizes: files, folders, patterns such as 'a/*.png', or a .txt of file names."""
    out: Path
    """Folder for <name>_mask.png (0 or 255, or class numbers, in the image's own size),
    <name>_prob.png (16 bits, 65535 is certain) and <name>_overlay.png."""
    save: tuple[Literal["masks", "probabilities", "overlays"], ...] = ("masks", "overlays")
    """What to write."""
    model: str | None = None
    """Name of the network, for a state dict that does not tell."""
    recursive: bool = False
    """Also take the images in sub-folders; results keep the sub-folders."""
    overwrite: bool = False
    """Replace results that are there already, which are kept otherwise."""
    threshold: float = 0.5
    """Probability from which a pixel belongs to the mask."""
    batch_size: int = 8
    """Images at a time."""
    tta: Literal["none", "flips"] = "none"
    """flips: the mean over the image and its three mirror images."""
    intensity: Literal["dtype", "percentile"] | None = None
    """How images of more than 8 bits become 8; None is as in training."""
    device: Device = "auto"
    """auto takes a GPU where there is one."""


def _require(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {value}")


def image_size(text: str | None, model: str) -> tuple[int, int]:
    """(H, W) of 'HxW'; None is the published size of `model`. ValueError for anything else."""
    arch = architecture(model)
    if text is None:
        return arch.size
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise ValueError(f"--size must be HxW, for example 192x256, got {text!r}")
    height, width = int(match[1]), int(match[2])
    check_size(height, width)
    return height, width


def uses_bf16(precision: str, device: torch.device) -> bool:
    """True where the network runs under bfloat16 autocast."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Emulated on other processors, and then slower than float32.
        has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return False


def torch_device(name: str) -> torch.device:
    """The device that 'auto', 'cpu', 'cuda' or 'mps' stands for; ValueError where it is absent."""
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise ValueError(f"--device {name}: this torch sees no such device here")
    return torch.device(name)
