"""Flags about optimization: budget, optimizer, schedule, clipping, precision, fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastclip.transfuse.config.checks import finite, require, require_at_least, require_positive


@dataclass(kw_only=True)
class OptimizationConfig:
    """How long training lasts, and what one step does."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = (
        *("batch_size", "accumulate", "lr", "optimizer", "momentum", "weight_decay"),
        *("layer_decay", "backbone_lr_scale", "ema", "ema_warmup", "best_by"),
    )

    epochs: int = 25
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, if that comes before the last epoch."""
    max_time: float | None = None
    """Stop after this many minutes, if that comes first.
    The decay is then completed by the clock; the last validation and the pictures come on top."""
    patience: int | None = None
    """Stop after this many validations in a row without a better --best-by."""
    best_by: Literal["dice", "iou", "accuracy", "loss"] = "dice"
    """What best.pt is the best by, on the validation images; of the loss the lowest."""
    batch_size: int = 16
    """Images in memory at a time, those of all processes of torchrun together; an incomplete last
    step is left out."""
    accumulate: int = 1
    """Batches whose gradients make one step, which then sees batch-size times as many images."""
    lr: float = 7e-5
    """Peak learning rate."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """adam: betas 0.5, 0.999, as published. adamw: betas 0.9, 0.999. All of them fused."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 0.0
    """Weight decay of matrices and filters; norms, biases and pos_embed never decay."""
    layer_decay: float | None = None
    """Factor on the learning rate per layer below the top one: both backbones are counted from
    their own input, the decoder lies on top. 0.75 is usual for fine-tuning."""
    backbone_lr_scale: float = 1.0
    """Factor on the learning rate of both backbones, e.g. 0.1."""
    ema: float | None = None
    """Keep a moving average of the weights with this decay, e.g. 0.999; it is what is validated,
    and the weights of best.pt and last.pt."""
    ema_warmup: bool = True
    """Let that decay rise from 0 as 1 - step^(-2/3), so that a short run is averaged too."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 1, "epochs", "batch_size", "accumulate", "patience")
        require_positive(self, "max_steps", "max_time", "backbone_lr_scale")
        require(self, "lr", 0 < self.lr < math.inf, "positive and finite")
        require(self, "weight_decay", finite(self.weight_decay), "0 or more")
        require(self, "momentum", 0 <= self.momentum < 1, "in 0..1, 1 excluded")
        for name in ("layer_decay", "ema"):
            value = getattr(self, name)
            require(self, name, value is None or 0 < value < 1, "between 0 and 1")


@dataclass(kw_only=True)
class ScheduleConfig:
    """The learning rate over the run."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = (
        *("schedule", "warmup_steps", "warmup_epochs", "min_lr"),
        *("poly_power", "decay_epochs", "decay_rate"),
    )

    schedule: Literal["constant", "linear", "cosine", "poly", "step", "one-cycle"] = "constant"
    """Learning rate after the warm-up: constant; down to --min-lr at the end; by --decay-rate every
    --decay-epochs (step); or up for 30 % of the run and down again, without a warm-up of its own
    (one-cycle)."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_epochs: float = 0.0
    """The same in epochs."""
    min_lr: float = 0.0
    """Where the decay ends; of groups with a factor, times that factor."""
    poly_power: float = 0.9
    """Exponent of poly: (1 - progress)^power."""
    decay_epochs: float = 50.0
    """Epochs between two falls of step."""
    decay_rate: float = 0.1
    """What step multiplies the learning rate by."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 0, "warmup_steps", "warmup_epochs")
        require_positive(self, "poly_power", "decay_epochs")
        require(self, "decay_rate", 0 < self.decay_rate <= 1, "in 0..1, 0 excluded")
        peak = getattr(self, "lr", math.inf)
        require(self, "min_lr", 0 <= self.min_lr <= peak, f"in 0..--lr {peak:g}")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("--warmup-steps and --warmup-epochs: give one")
        if self.schedule == "one-cycle" and (self.warmup_steps or self.warmup_epochs):
            raise ValueError("--schedule one-cycle rises by itself: leave --warmup-... out")


@dataclass(kw_only=True)
class ClippingConfig:
    """What happens to gradients before a step."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = (
        *("clip", "clip_norm", "clip_value", "agc_ratio", "autoclip_percentile"),
        "zclip_threshold",
    )

    clip: Literal["norm", "value", "agc", "autoclip", "zclip", "none"] = "norm"
    """By the norm of all gradients; each value; each filter by the norm of its weights (AGC); by a
    percentile of the norms so far (AutoClip); norms that stand out (ZClip); or not at all. A step
    whose norm is not finite changes nothing."""
    clip_norm: float = 2.0
    """Gradient norm to clip to; inf never clips."""
    clip_value: float = 0.5
    """Largest absolute value of --clip value."""
    agc_ratio: float = 0.01
    """Share of a filter's norm that its gradient's norm may have, of --clip agc."""
    autoclip_percentile: float = 10.0
    """Percentile of --clip autoclip."""
    zclip_threshold: float = 2.5
    """Standard deviations above the mean norm from which --clip zclip clips."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require(self, "clip_norm", self.clip_norm > 0, "more than 0 (inf never clips)")
        require_positive(self, "clip_value", "agc_ratio", "zclip_threshold")
        percentile = self.autoclip_percentile
        require(self, "autoclip_percentile", 0 < percentile <= 100, "in 0..100, 0 excluded")


@dataclass(kw_only=True)
class ComputeConfig:
    """How a step is computed: precision, compiler, memory, and where its time goes."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ("precision", "reference_ops")

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """bf16 and fp16 run the network under autocast, fp16 with a loss scale; loss, gradients and
    weights stay float32. auto takes bf16 where the device computes in it, else fp32."""
    compile: bool = False
    """Compile the network with torch.compile: the first steps take minutes."""
    grad_checkpointing: bool = False
    """Compute the transformer's activations again in the backward pass, to save memory."""
    reference_ops: bool = False
    """Loss and clipping by torch's own functions instead of fastclip's, to compare."""
    profile: bool = False
    """Write a trace of ten steps to trace.json and print where their time goes."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        clip = getattr(self, "clip", "norm")
        if self.reference_ops and clip in ("autoclip", "zclip"):
            raise ValueError(
                f"--reference-ops: torch has no --clip {clip}; norm, value, agc or none"
            )


@dataclass(kw_only=True)
class FineTuningConfig:
    """What training starts from, and which part of it trains."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ("freeze", "freeze_epochs")

    init: Path | None = None
    """Start from the weights of this checkpoint of a TransFuse; its heads may have other sizes."""
    freeze: tuple[str, ...] = ()
    """Parameters that do not train, by parts of their names or patterns: resnet, 'transformer.*'.
    Batch norms among them keep their statistics."""
    freeze_epochs: int | None = None
    """Let them train after this many epochs; None never."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 1, "freeze_epochs")
        if self.freeze_epochs is not None and not self.freeze:
            raise ValueError("--freeze-epochs needs --freeze: which parameters to freeze")


@dataclass(kw_only=True)
class AugmentationConfig:
    """How training images are varied, and by how many processes they are fetched."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ("augment", "augment_on", "multi_scale")

    augment: bool = True
    """Shift, scale, rotation, colour jitter and flips of the training images."""
    augment_on: Literal["device", "workers"] = "device"
    """device: whole batches where the network runs. workers: image by image with torchvision, in
    the --workers. Either gives an image the same look whatever batch it is in."""
    multi_scale: tuple[float, ...] = ()
    """Factors on the size, e.g. 0.75 1 1.25: each step draws one of them."""
    workers: int = 0
    """Subprocesses that fetch (and, with --augment-on workers, augment) images, of each process of
    torchrun; they live as long as the run. The images themselves are kept decoded in memory."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 0, "workers")
        fine = all(0 < scale < math.inf for scale in self.multi_scale)
        require(self, "multi_scale", fine, "factors above 0")
