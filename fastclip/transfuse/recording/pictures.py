"""Overlays of masks on images, and curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastclip.transfuse.data.samples import Samples
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.storage.files import write_file

TRUTH, PREDICTION = (60, 180, 75), (230, 60, 60)
# Okabe and Ito, "Color Universal Design": told apart by the colour-blind too.
CLASS_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)


def tint(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Blend `colour` over uint8 [H, W, 3] where bool [H, W] is set, and draw its rim solid."""
    out = image.astype(np.float32)
    out[mask] = 0.65 * out[mask] + 0.35 * np.array(colour, np.float32)
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    out[mask & ~inner] = colour
    return out.round().astype(np.uint8)


def tint_all(image: np.ndarray, masks: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """`tint` with bool masks [C, H, W]: one in `colour`, several in a colour for each class."""
    if len(masks) == 1:
        return tint(image, masks[0], colour)
    for number, mask in enumerate(masks):
        image = tint(image, mask, CLASS_COLOURS[number % len(CLASS_COLOURS)])
    return image


@torch.no_grad()
def overlays(model: TransFuse, samples: Samples) -> list[np.ndarray]:
    """Of each sample the image, its truth (green) and the prediction (red); or a colour a class.

    Args:
        model: left in the mode it came in.
        samples: a few, predicted at once.

    Returns:
        uint8 [H, 3 * W, 3] each.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    predicted = model(normalise(samples.images.to(device)))[2].cpu() > 0  # [N, C, H, W]
    model.train(training)
    rows = []
    for image, mask, guess in zip(samples.images, samples.masks, predicted, strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        truth = tint_all(pixels, mask.numpy() >= 128, TRUTH)
        predicted_mask = tint_all(pixels, guess.numpy(), PREDICTION)
        rows.append(np.concatenate([pixels, truth, predicted_mask], 1))
    return rows


def sheet(model: TransFuse, samples: Samples, count: int = 8) -> np.ndarray:
    """`overlays` of samples that are spread evenly, below each other: uint8 [N * H, 3 * W, 3]."""
    step = max(1, len(samples) // count)
    chosen = samples.subset(list(range(0, len(samples), step))[:count])
    return np.concatenate(overlays(model, chosen))


def write_png(file: Path, pixels: np.ndarray | Tensor) -> None:
    """Write uint8 [H, W] or [H, W, 3]; the file appears whole or not at all."""
    write_file(file, lambda stream: Image.fromarray(np.asarray(pixels)).save(stream, "PNG"))


def write_curves(
    file: Path, steps: list[dict[str, Any]], epochs: list[dict[str, Any]], title: str
) -> None:
    """Losses and gradient norm by step, scores by validation, as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, norms, scores = figure.subplots(1, 3)
    at = [row["step"] for row in steps]
    for key, label in (("loss_2", "map_2"), ("loss_1", "map_1"), ("loss_x", "map_x")):
        losses.plot(at, [row[key] for row in steps], label=label, linewidth=1)
    seen = [row["step"] for row in epochs]
    losses.plot(seen, [row["val_loss"] for row in epochs], "k.--", label="validation")
    losses.set(title="structure loss", xlabel="step")
    losses.legend()
    norms.plot(at, [row["grad_norm"] for row in steps], color="tab:purple", linewidth=1)
    norms.set(title="gradient norm before clipping", xlabel="step", yscale="log")
    for key in ("dice", "iou", "accuracy"):
        scores.plot(seen, [row[key] for row in epochs], ".-", label=key)
    scores.set(title="validation", xlabel="step", ylim=(0, 1))
    scores.legend(loc="lower right")
    figure.suptitle(title, parse_math=False)  # a folder's name may hold dollars
    write_file(file, lambda stream: figure.savefig(stream, dpi=110, format="png"))
