"""Builds a TransFuse by name, with or without pretrained backbones."""

from __future__ import annotations

from fastclip.transfuse.network.model import TransFuse, architecture
from fastclip.transfuse.network.pretrained import load_backbones


def create_model(name: str, num_classes: int = 1, pretrained: bool = False) -> TransFuse:
    """Build a TransFuse.

    Args:
        name: 'transfuse_t' (small, for a CPU), 'transfuse_s', 'transfuse_l' or
            'transfuse_l_384'; the last three are the published networks.
        num_classes: channels of each output map.
        pretrained: load ImageNet weights into both backbones (downloads them once).

    Raises:
        ValueError: an unknown name, or fewer than one class.
        RuntimeError: the backbone weights cannot be had or do not fit.
    """
    arch = architecture(name)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    model = TransFuse(arch, num_classes)
    if pretrained:
        load_backbones(model)
    return model
