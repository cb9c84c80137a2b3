"""`fastclip train`: one class of flags per subject, composed into one flat configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastclip.transfuse.config.checks import Device, require_at_least
from fastclip.transfuse.config.data import TrainingDataConfig
from fastclip.transfuse.config.distributed import DistributedConfig
from fastclip.transfuse.config.network import NetworkConfig
from fastclip.transfuse.config.optimization import (
    AugmentationConfig,
    ClippingConfig,
    ComputeConfig,
    FineTuningConfig,
    OptimizationConfig,
    ScheduleConfig,
)
from fastclip.transfuse.config.recording import RecordingConfig
from fastclip.transfuse.config.safety import SafetyConfig


@dataclass(kw_only=True)
class ConfigurationConfig:
    """Where flags come from, beside the command line."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ()

    config: str | None = None
    """YAML file of 'flag: value', such as the config.yaml of a run, or the name of a recipe:
    transfuse-published, polyp-pranet, cpu-small. Flags on the command line win over it."""

    def check(self) -> None:
        """The command line has read it."""


@dataclass(kw_only=True)
class MachineConfig:
    """Where it runs, and the seed."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = ("seed",)

    device: Device = "auto"
    """auto takes a GPU where there is one."""
    seed: int = 0
    """Seed of weights, order, augmentation, dropout, split and synthetic images."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require_at_least(self, 0, "seed")


# Subjects of `fastclip train`, in the order of its help. Each has its fields, a check of them, and
# in SAME_ON_RESUME the names of those that a resumed run shares with its first part.
SUBJECTS = (
    ConfigurationConfig,
    TrainingDataConfig,
    NetworkConfig,
    OptimizationConfig,
    ScheduleConfig,
    ClippingConfig,
    ComputeConfig,
    DistributedConfig,
    FineTuningConfig,
    AugmentationConfig,
    SafetyConfig,
    RecordingConfig,
    MachineConfig,
)


@dataclass(kw_only=True)
class TrainConfig(
    ConfigurationConfig,
    TrainingDataConfig,
    NetworkConfig,
    OptimizationConfig,
    ScheduleConfig,
    ClippingConfig,
    ComputeConfig,
    DistributedConfig,
    FineTuningConfig,
    AugmentationConfig,
    SafetyConfig,
    RecordingConfig,
    MachineConfig,
):
    """Train a TransFuse; the defaults are those of the published trainer."""

    SAME_ON_RESUME: ClassVar[tuple[str, ...]] = tuple(
        name for subject in SUBJECTS for name in subject.SAME_ON_RESUME
    )

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        for subject in SUBJECTS:
            subject.check(self)
