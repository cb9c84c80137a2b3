"""What training minimises: the structure loss of the three maps, weighted as published."""

from __future__ import annotations

from torch import Tensor

import fastclip

HEAD_WEIGHTS = (0.5, 0.3, 0.2)  # of map_2, map_1, map_x


def head_losses(maps: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    """The structure loss of each map, the mean over images and classes.

    Args:
        maps: logits (map_x, map_1, map_2) of the network, [B, C, H, W] each; differentiable.
        targets: uint8 masks [B, C, H, W] of 0..255; or [B, C + 1, H, W], where the last channel
            is above 0 in pixels that count nowhere.

    Returns:
        float32 [3], of map_2, map_1 and map_x.
    """
    map_x, map_1, map_2 = maps
    classes = map_2.shape[1]
    ignored = targets[:, classes:]
    valid = ignored == 0 if ignored.shape[1] else None
    masks = targets[:, :classes].float() / 255
    # One call for all heads: the weight map of the mask is computed once.
    heads = (map_2, map_1, map_x)
    per_image = fastclip.structure_loss(heads, masks, valid=valid, reduction="none")
    return per_image.mean(dim=(1, 2))
