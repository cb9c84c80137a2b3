"""--clip: what is done to the gradients of a step; each gives their norm before."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

import fastclip
from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.network.model import TransFuse

# The last layers, which AGC leaves out as its paper does.
HEADS = ("final_x.2.", "final_1.1.", "final_2.1.")


class Clipper(Protocol):
    """Clips gradients in place, by itself: not by a limit on their norm within the step."""

    def clip_(self, parameters: list[Tensor]) -> Tensor:
        """Returns the norm of all gradients before, 0-d."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Stateless:
    """A clipper that measures the norm, then calls `clip`.

    Args:
        norm: of a list of gradients.
        clip: what clips the gradients of parameters in place.
        left_out: parameters that are measured and not clipped.
    """

    def __init__(
        self,
        norm: Callable[[list[Tensor]], Tensor],
        clip: Callable[[list[Tensor]], object],
        left_out: tuple[Tensor, ...] = (),
    ) -> None:
        self.norm, self.clip = norm, clip
        self.left_out = {id(p) for p in left_out}

    def clip_(self, parameters: list[Tensor]) -> Tensor:
        total = self.norm([p.grad for p in parameters if p.grad is not None])
        self.clip([p for p in parameters if id(p) not in self.left_out])
        return total

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def limit_of(config: TrainConfig) -> float | None:
    """The limit on the norm that clips within the step; None where a clipper does it."""
    limits = {"norm": config.clip_norm, "none": math.inf}
    return limits.get(config.clip)


def make_clipper(config: TrainConfig, model: TransFuse) -> Clipper | None:
    """The clipper of --clip; None where `limit_of` says it all."""
    if config.clip == "autoclip":
        return fastclip.AutoClip(config.autoclip_percentile)
    if config.clip == "zclip":
        return fastclip.ZClip(config.zclip_threshold)
    heads = tuple(p for name, p in model.named_parameters() if name.startswith(HEADS))
    if config.clip == "agc":
        return Stateless(_norm(config), _agc(config), heads)
    if config.clip == "value":
        ops: Any = nn.utils if config.reference_ops else fastclip
        return Stateless(_norm(config), lambda p: ops.clip_grad_value_(p, config.clip_value))
    return None


def _norm(config: TrainConfig) -> Callable[[list[Tensor]], Tensor]:
    return nn.utils.get_total_norm if config.reference_ops else fastclip.get_total_norm


def _agc(config: TrainConfig) -> Callable[[list[Tensor]], object]:
    if config.reference_ops:
        from timm.utils.agc import adaptive_clip_grad

        return partial(adaptive_clip_grad, clip_factor=config.agc_ratio)
    return fastclip.AGC(config.agc_ratio).clip_
