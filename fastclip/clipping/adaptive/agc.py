"""AGC: each unit's gradient norm limited to a fraction of its weight norm."""

from __future__ import annotations

from typing import Any

from fastclip.clipping.names import Tensors, as_tensors
from fastclip.ops.unit_clip.dispatch import clip_units_


class AGC:
    """Adaptive gradient clipping: each unit's gradient norm to a fraction of its weight norm.

    A unit is one row of a matrix or one output filter of a convolution; a bias or a gain counts as
    one unit. A unit whose gradient norm is over ``limit = clipping * max(|w|, eps)`` is multiplied
    by ``limit / max(|g|, 1e-6)``; one within its limit is left alone, however small that is.

    Args:
        clipping: the fraction; > 0.
        eps: stands for the norm of weights below it, so that zero weights can grow; >= 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization",
    ICML 2021 (arXiv 2102.06171). Leave the last linear layer out, as the paper does.
    """

    def __init__(self, clipping: float = 0.01, eps: float = 1e-3) -> None:
        if not clipping > 0 or not eps >= 0:
            raise ValueError(f"clipping must be > 0 and eps >= 0, got {clipping!r}, {eps!r}")
        self.clipping, self.eps = clipping, eps

    def clip_(self, parameters: Tensors) -> None:
        """Clips the gradients in place, without waiting for a GPU.

        On the CPU and on GPUs all in one call that reads weights and gradients once and writes only
        units that are clipped; what no kernel takes in a few torch calls for each parameter.

        Args:
            parameters: a tensor or an iterable of tensors, of any shape and floating dtype; those
                without a gradient are skipped. Also ``model.named_parameters()``.

        Raises:
            NotImplementedError: a weight or gradient is float8; nothing was changed.
        """
        clip_units_(as_tensors(parameters), self.clipping, self.eps)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the limit depends on the weights alone."""
