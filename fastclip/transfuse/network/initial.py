"""A network's first weights from a checkpoint of another run, whose heads may have other sizes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.network.model import TransFuse, resize_pos_embed
from fastclip.transfuse.storage.checkpoint import CheckpointError, load_checkpoint, require

HEADS = ("final_x.", "final_1.", "final_2.")
POS_EMBED = "transformer.pos_embed"


def load_initial(model: TransFuse, file: Path) -> list[str]:
    """Put into `model` what of a checkpoint's weights fits it.

    Heads of another number of classes keep their random weights, and a position embedding of
    another size of image is resized. Everything else has to fit.

    Args:
        model: changed in place.
        file: a checkpoint of this trainer, or a state dict of a TransFuse.

    Returns:
        Lines that say what was loaded and what was not.

    Raises:
        CheckpointError: the file cannot be read, or is of another network.
    """
    content = load_checkpoint(file)
    require(content, file, "weights")
    weights, own = dict(content["weights"]), model.state_dict()
    lines = []
    if (embed := weights.get(POS_EMBED)) is not None and embed.shape != own[POS_EMBED].shape:
        weights[POS_EMBED] = _resized(embed, own[POS_EMBED], model, file)
        lines.append(f"{POS_EMBED} resized from {embed.shape[1]} to {own[POS_EMBED].shape[1]}")
    missing = [key for key in own if key not in weights]
    other = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    left = [key for key in other if key.startswith(HEADS)]
    if wrong := [key for key in (*missing, *other) if key not in left]:
        first = wrong[0]
        there = list(weights[first].shape) if first in weights else "missing"
        raise CheckpointError(
            f"--init {printable(file)} is of another network than --model: {first} is {there} "
            f"there and {list(own[first].shape)} here ({len(wrong)} such tensors); give the "
            "--model that it was trained with"
        )
    fitting = {key: weights[key] for key in own if key not in left}
    model.load_state_dict(fitting, strict=False)
    loaded = f"--init {printable(file)}: {len(fitting)} of {len(own)} tensors"
    kept = [f"{key} {list(weights[key].shape)} there, {list(own[key].shape)} here" for key in left]
    return [loaded + ("; not loaded: " + "; ".join(kept) if kept else ""), *lines]


def _resized(embed: Tensor, own: Tensor, model: TransFuse, file: Path) -> Tensor:
    """A position embedding on the grid of `model`: both grids have the same shape of image."""
    rows, columns = model.arch.grid
    tokens = embed.shape[1] if embed.ndim == 3 else 0
    shrunk = round((tokens * rows / columns) ** 0.5)
    grid = (shrunk, tokens // shrunk if shrunk else 0)
    if not tokens or grid[0] * grid[1] != tokens or embed.shape[2] != own.shape[2]:
        raise CheckpointError(
            f"--init {printable(file)} is of another network than --model: {POS_EMBED} is "
            f"{list(embed.shape)} there and {list(own.shape)} here"
        )
    return resize_pos_embed(embed, grid, (rows, columns))
