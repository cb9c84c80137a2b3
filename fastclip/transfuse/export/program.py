"""A network as one graph for any batch and any size: what both formats are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastclip.transfuse.data.samples import Size
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.network.model import PATCH, TransFuse
from fastclip.transfuse.prediction.ensemble import NO_PREDICTION

LEAST = 2  # patches down and across: a graph for any size is not one for a single patch


class Segmenter(nn.Module):
    """Normalised images, float32 [B, 3, H, W], to probabilities [B, C, H, W]."""

    def __init__(self, network: TransFuse) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The probabilities of map_2."""
        return self.network(images)[2].sigmoid()


def capture(model: Segmenter) -> ExportedProgram:
    """The graph of `model`, for a batch of 1 or more and sides of 32, 48, 64, ..."""
    rows, columns = Dim("rows", min=LEAST), Dim("columns", min=LEAST)
    shapes = {0: Dim("batch", min=1), 2: PATCH * rows, 3: PATCH * columns}
    # No two sizes of the example are equal, or the graph would take them for one.
    example = torch.zeros(2, 3, 3 * PATCH, 4 * PATCH)
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=(shapes,))


def trials(size: Size) -> Iterator[Tensor]:
    """Random images of three sizes and batches: that of training, a small and a larger one."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    for batch, at in (
        (1, size),
        (3, (LEAST * PATCH, 3 * PATCH)),
        (2, (height + 2 * PATCH, width + PATCH)),
    ):
        yield torch.randn(batch, 3, *at, generator=generator)


@torch.no_grad()
def largest_difference(model: Segmenter, other: Callable[[Tensor], Tensor], size: Size) -> float:
    """How far the probabilities of `other` are from those of `model`, over all trials.

    Raises:
        RunError: the network gives NaN or infinity.
    """
    worst = 0.0
    for images in trials(size):
        expected = model(images)
        if not expected.isfinite().all():
            raise RunError(NO_PREDICTION)
        found = other(images)
        if found.shape != expected.shape:
            return float("inf")
        # A NaN of the other is not lost in a maximum.
        worst = max(worst, float((found - expected).abs().nan_to_num(nan=torch.inf).max()))
    return worst
