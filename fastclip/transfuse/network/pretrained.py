"""ImageNet weights for the two backbones, and checkpoints of whole models.

The CNN takes torchvision's ResNet checkpoint by key. The transformer takes DeiT's: the blocks
that the model does not have and the head are dropped, the position embedding loses its class
position and is resized from its square grid to the model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastclip.transfuse.network.model import TransFuse, resize_pos_embed

Weights = Mapping[str, Tensor] | str | Path


def load_backbones(
    model: TransFuse, *, resnet: Weights | None = None, deit: Weights | None = None
) -> None:
    """Load ImageNet weights into both backbones, in place.

    Args:
        model: a TransFuse.
        resnet: torchvision's ResNet of the model's depth: a state dict or its file; None
            downloads it once (torchvision checks the digest).
        deit: DeiT of the model's width: a state dict, `{"model": state dict}` as published, or
            a file of either; None downloads it once through timm.

    Raises:
        RuntimeError: a download fails, or weights do not fit; the model is then unchanged.
        FileNotFoundError: a file that is not there.
    """
    arch = model.arch
    cnn = _read(resnet) if resnet is not None else _download_resnet(arch.resnet)
    transformer = _read(deit) if deit is not None else _download_deit(arch.deit)
    cnn = resnet_weights(cnn, model)
    transformer = deit_weights(transformer, model)
    model.resnet.load_state_dict(cnn)
    model.transformer.load_state_dict(transformer)


def resnet_weights(state: Mapping[str, Tensor], model: TransFuse) -> dict[str, Tensor]:
    """The part of a torchvision ResNet state dict that the CNN branch takes."""
    wanted = model.resnet.state_dict()
    return _fitting(state, wanted, f"{model.arch.resnet} checkpoint")


def deit_weights(state: Mapping[str, Tensor], model: TransFuse) -> dict[str, Tensor]:
    """The part of a DeiT state dict that the transformer branch takes.

    `pos_embed` [1, 1 + g*g, width] becomes [1, h*w, width] of the model's grid (bilinear,
    align_corners=True).
    """
    wanted = model.transformer.state_dict()
    what = f"{model.arch.deit} checkpoint"
    state = dict(state)
    if "pos_embed" in state and state["pos_embed"].ndim == 3:
        pos_embed = state["pos_embed"][:, 1:]
        side = math.isqrt(pos_embed.shape[1])
        if side * side != pos_embed.shape[1]:
            raise RuntimeError(
                f"{what}: pos_embed {list(state['pos_embed'].shape)} is not a class position "
                "and a square grid"
            )
        state["pos_embed"] = resize_pos_embed(pos_embed, (side, side), model.arch.grid)
    return _fitting(state, wanted, what)


def _fitting(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    # Old torchvision files lack the batch counters, which matter only for momentum=None.
    needed = [key for key in wanted if key in state or not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in state]
    if missing:
        raise RuntimeError(f"{what}: {len(missing)} keys are missing, the first is {missing[0]!r}")
    for key in needed:
        if state[key].shape != wanted[key].shape:
            raise RuntimeError(
                f"{what}: {key} is {list(state[key].shape)}, expected {list(wanted[key].shape)}"
            )
    return {key: state[key] if key in state else wanted[key] for key in wanted}


def _read(source: Weights) -> Mapping[str, Tensor]:
    state: Any = source
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no weights file at {path}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RuntimeError(f"{path} is not a readable checkpoint: {error}") from error
    inner = state.get("model") if isinstance(state, Mapping) else None
    state = inner if isinstance(inner, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RuntimeError(
            f"{source if isinstance(source, str | Path) else 'weights'}: "
            "not a state dict of tensors"
        )
    return state


def _download_resnet(name: str) -> Mapping[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # URLError, SSL, a wrong digest, a full disk
        raise RuntimeError(_no_download(f"torchvision's {name}", "resnet", error)) from error


def _download_deit(name: str) -> Mapping[str, Tensor]:
    import timm

    try:
        return timm.create_model(f"{name}.fb_in1k", pretrained=True).state_dict()
    except Exception as error:  # hub and network errors of several libraries
        raise RuntimeError(_no_download(f"timm's {name}", "deit", error)) from error


def _no_download(what: str, branch: str, error: Exception) -> str:
    return (
        f"cannot download {what} weights ({type(error).__name__}: {error}). Without a network, "
        f"pass a file: load_backbones(model, {branch}=FILE), or --{branch}-weights FILE on the "
        "command line; or train from scratch without pretrained weights"
    )
