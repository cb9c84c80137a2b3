"""The pictures of docs/structure_loss.md, drawn over one lesion of a data folder.

    python docs/figures.py --data folder --out docs/figures   # or: make docs-figures DATA=folder

`--data synthetic` draws the trainer's synthetic lesions, and says so in the picture. The committed
pictures show ISIC_0003582 of the ISIC 2017 challenge (CC0); with another folder it is the lesion
nearest to a sixth of its image. Every gradient and loss is that of `fastclip.structure_loss`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import fastclip
from fastclip.transfuse.data import load_split
from fastclip.transfuse.data.synthetic import synthetic_samples

SIZE = (192, 256)  # H, W: TransFuse's
PIXELS = SIZE[0] * SIZE[1]
COMMITTED = "ISIC_0003582"
CREDIT = f"{COMMITTED}, ISIC 2017 challenge (Codella et al., arXiv:1710.05006), CC0 1.0"
MASK, GUESS = "#00e5ff", "#ffe600"  # outlines
DPI = 144  # of 8 inches: sharp at the 800 pixels that a page shows
STYLE = {"titlesize": 10, "labelsize": 8.5}


def lesion(data: str) -> tuple[np.ndarray, Tensor, str]:
    """(uint8 [H, W, 3], mask [1, 1, H, W] of 0 and 1, credit line)."""
    if data == "synthetic":
        samples = synthetic_samples(16, SIZE, seed=0)
    else:
        samples = load_split(data, "val", SIZE)
    masks = (samples.masks >= 128).float()
    row = int((masks.mean((1, 2, 3)) - 1 / 6).abs().argmin())
    if COMMITTED in samples.names:
        row = samples.names.index(COMMITTED)
    credit = f"{samples.names[row]}, {samples.source}"
    if data == "synthetic":
        credit = "SYNTHETIC lesion, made by fastclip.transfuse"
    elif samples.names[row] == COMMITTED:
        credit = CREDIT
    return samples.images[row].permute(1, 2, 0).numpy(), masks[row : row + 1], credit


def blurred(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of [1, 1, H, W]; the edge is continued."""
    radius = int(3 * sigma)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def guessed(mask: Tensor) -> Tensor:
    """Logits of a plausible prediction: the mask, moved by 8 and 12 pixels, with a soft rim."""
    return 8 * (blurred(torch.roll(mask, (8, 12), (2, 3)), 4) - 0.5)


def weights(mask: Tensor, window: int = 31) -> Tensor:
    """The weight map w [H, W], as the loss computes it."""
    pooled = F.avg_pool2d(mask, window, stride=1, padding=window // 2)
    return (1 + 5 * (pooled - mask).abs())[0, 0]


def gradient(logits: Tensor, mask: Tensor, **options: object) -> tuple[Tensor, float]:
    """(d loss / d logit [H, W], times H W so that its values are near 1, and the loss)."""
    leaf = logits.clone().requires_grad_()
    loss = fastclip.structure_loss(leaf, mask, **options)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad[0, 0] * PIXELS, loss.item()


def canvas(height_inch: float, credit: str) -> Figure:
    figure = Figure(figsize=(8, height_inch), layout="constrained")
    FigureCanvasAgg(figure)
    figure.supxlabel(credit, fontsize=7.5, color="#555555", x=0.995, ha="right")
    return figure


def panel(axes: Axes, title: str) -> Axes:
    axes.set_title(title, fontsize=STYLE["titlesize"])
    axes.set(xticks=[], yticks=[])
    return axes


def outline(axes: Axes, field: Tensor, level: float, colour: str) -> None:
    axes.contour(field[0, 0].numpy(), levels=[level], colors=[colour], linewidths=1.3)


def coloured(figure: Figure, axes: Axes, values: Tensor, label: str, **how: object) -> None:
    """A map with its colour bar."""
    shown = axes.imshow(values.numpy(), interpolation="nearest", **how)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, aspect=30, pad=0.02)
    bar.set_label(label, fontsize=STYLE["labelsize"])
    bar.ax.tick_params(labelsize=STYLE["labelsize"])


def photograph(figure: Figure, axes: Axes, image: np.ndarray, below: dict[str, str]) -> None:
    """The image, in line with the maps beside it; where their colour bars stand, a key."""
    shown = panel(axes, "image").imshow(image)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, aspect=30, pad=0.02)
    bar.set_label(" ", fontsize=STYLE["labelsize"])
    bar.ax.tick_params(labelsize=STYLE["labelsize"], colors="none")
    for part in (bar.solids, bar.outline, bar.ax.patch):
        part.set_visible(False)
    for row, (text, colour) in enumerate(below.items()):
        y = -0.09 - 0.11 * row
        at = {"transform": axes.transAxes, "va": "center", "in_layout": False}
        axes.text(0.0, y, "\u25ac", color=colour, fontsize=STYLE["labelsize"], **at)
        axes.text(0.1, y, text, fontsize=STYLE["labelsize"], **at)


KEY = {"mask m": MASK, r"prediction, $\sigma(x) = 0.5$": GUESS}
GRADIENT = r"d loss / d logit  $\times$ H·W"


def draw_gradients(image: np.ndarray, mask: Tensor, credit: str) -> Figure:
    """Image, mask, weights; prediction and its gradient for both meanings of the BCE."""
    logits = guessed(mask)
    figure = canvas(6.0, credit)
    top, bottom = figure.subplots(2, 3)
    photograph(figure, top[0], image, KEY)
    outline(top[0], mask, 0.5, MASK)
    outline(top[0], logits, 0.0, GUESS)
    coloured(figure, panel(top[1], "mask"), mask[0, 0], "m", cmap="gray", vmin=0, vmax=1)
    w = weights(mask)
    coloured(figure, panel(top[2], "weight map"), w, "w, window 31", cmap="viridis", vmin=1)
    sigma = logits.sigmoid()[0, 0]
    coloured(
        figure, panel(bottom[0], "prediction"), sigma, r"$\sigma(x)$", cmap="gray", vmin=0, vmax=1
    )
    both = {kind: gradient(logits, mask, bce=kind) for kind in ("weighted", "mean")}
    most = max(grad.abs().max().item() for grad, _ in both.values())
    for axes, (kind, (grad, loss)) in zip(bottom[1:], both.items(), strict=True):
        panel(axes, f'gradient, bce="{kind}"')
        coloured(figure, axes, grad, GRADIENT, cmap="RdBu_r", vmin=-most, vmax=most)
        outline(axes, mask, 0.5, "#333333")
        axes.text(0.03, 0.04, f"loss {loss:.3f}", transform=axes.transAxes, fontsize=9)
    return figure


def draw_windows(image: np.ndarray, mask: Tensor, credit: str) -> Figure:
    """The weight map for three windows, and along one line."""
    figure = canvas(4.4, credit)
    maps = figure.subplot_mosaic([[3, 31, 101], ["line"] * 3], height_ratios=[1.5, 1])
    row = int(mask[0, 0].sum(1).argmax())
    line = maps["line"]
    inside = mask[0, 0, row].numpy() > 0.5
    line.fill_between(
        np.arange(SIZE[1]), 1, 6, where=inside, color="#dddddd", label="mask", step="mid"
    )
    for window, colour in ((3, "#d95f02"), (31, "#1b9e77"), (101, "#7570b3")):
        w = weights(mask, window)
        axes = panel(maps[window], f"window {window}")
        shown = axes.imshow(w.numpy(), cmap="viridis", vmin=1, vmax=6, interpolation="nearest")
        axes.axhline(row, color="white", linewidth=0.8, linestyle="--")
        line.plot(w[row].numpy(), color=colour, linewidth=1.5, label=f"window {window}")
    bar = figure.colorbar(shown, ax=[maps[window] for window in (3, 31, 101)], shrink=0.9, pad=0.01)
    bar.set_label("w", fontsize=STYLE["labelsize"], rotation=0)
    bar.ax.tick_params(labelsize=STYLE["labelsize"])
    line.set_title("along the dashed line", fontsize=STYLE["titlesize"])
    line.set(xlim=(0, SIZE[1] - 1), ylim=(1, 6), xlabel="column, pixels", ylabel="w")
    line.tick_params(labelsize=STYLE["labelsize"])
    line.legend(fontsize=STYLE["labelsize"], loc="upper right", framealpha=1)
    return figure


def elsewhere(image: np.ndarray, mask: Tensor) -> Tensor:
    """Something that is no lesion [1, 1, H, W] bool: a blue sticker, or the far corner."""
    red, blue = (torch.from_numpy(image[..., c].astype(np.float32)) for c in (0, 2))
    sticker = blurred((blue > red).float()[None, None], 2) > 0.5
    if sticker.float().mean() > 0.01:
        return sticker & (mask == 0)
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij")
    cy, cx = ((mask[0, 0] * axis).sum() / mask.sum() for axis in (y, x))
    corner = (
        0.0 if cy > SIZE[0] / 2 else SIZE[0] - 1.0,
        0.0 if cx > SIZE[1] / 2 else SIZE[1] - 1.0,
    )
    disc = torch.hypot(y - corner[0], x - corner[1]) < SIZE[0] / 3
    return disc[None, None] & (mask == 0)


def draw_valid(image: np.ndarray, mask: Tensor, credit: str) -> Figure:
    """A prediction that takes something else for a lesion too; the same with `valid`."""
    other = elsewhere(image, mask)
    logits = torch.maximum(guessed(mask), 8 * (blurred(other.float(), 4) - 0.5))
    figure = canvas(2.9, credit)
    first, *rest = figure.subplots(1, 3)
    ignored = F.max_pool2d(other.float(), 25, stride=1, padding=12)  # and the rim around it
    photograph(figure, first, image, {**KEY, "hatched: valid = 0": "#888888"})
    outline(first, mask, 0.5, MASK)
    outline(first, logits, 0.0, GUESS)
    first.contourf(ignored[0, 0], levels=[0.5, 1.5], colors="none", hatches=["////"])
    pair = {
        "gradient, every pixel valid": gradient(logits, mask),
        "gradient, valid = 0 where hatched": gradient(logits, mask, valid=1 - ignored),
    }
    most = max(grad.abs().max().item() for grad, _ in pair.values())
    for axes, (title, (grad, loss)) in zip(rest, pair.items(), strict=True):
        panel(axes, title)
        coloured(figure, axes, grad, GRADIENT, cmap="RdBu_r", vmin=-most, vmax=most)
        outline(axes, mask, 0.5, "#333333")
        axes.text(0.03, 0.04, f"loss {loss:.3f}", transform=axes.transAxes, fontsize=9)
    assert (grad[ignored[0, 0] > 0] == 0).all()  # what the picture says
    axes.contour(ignored[0, 0], levels=[0.5], colors=["#333333"], linewidths=1, linestyles=":")
    place = (ignored[0, 0] > 0).nonzero().float().mean(0).flip(0).tolist()  # x, y
    arrow = {"arrowstyle": "->", "color": "#333333"}
    axes.annotate("exactly 0", place, (150, 20), fontsize=STYLE["labelsize"], arrowprops=arrow)
    return figure


FIGURES = {"gradients": draw_gradients, "windows": draw_windows, "valid": draw_valid}


def save(figure: Figure, file: Path) -> None:
    """The same bytes for the same picture: no date or version inside."""
    figure.savefig(file, dpi=DPI, pil_kwargs={"optimize": True}, metadata={"Software": None})
    print(f"{file}: {file.stat().st_size / 1e3:.0f} KB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/structure_loss.md.")
    parser.add_argument("--data", default="synthetic", help="data folder, or 'synthetic'")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    image, mask, credit = lesion(arguments.data)
    for name, draw in FIGURES.items():
        save(draw(image, mask, credit), arguments.out / f"structure_loss_{name}.png")


if __name__ == "__main__":
    main()
