"""The pictures of docs/adaptive.md and docs/charts.md: small trainings, charted by fastclip itself.

python docs/pictures.py --out docs/pictures     # or: make docs-figures
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

import fastclip

STEPS, SPIKES = 300, 6
BEFORE, AFTER = "#c44e52", "#2b6cb0"


def figure_of(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of the pages' width, and its axes."""
    figure = Figure(figsize=(8, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.grid(alpha=0.3)
        one.tick_params(labelsize=8)
    return figure, list(axes.flat)


def regression() -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A small network and the loss of a step; on a few steps the targets are far off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
                          nn.Linear(64, 1))  # fmt: skip
    true = torch.randn(16, 1)
    spikes = set(torch.randint(60, STEPS, (SPIKES,)).tolist())

    def loss(step: int) -> Tensor:
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
        y = (x @ true).sin() * (20.0 if step in spikes else 1.0)
        return (model(x) - y).square().mean()

    return model, loss


def norms_under(clipper: fastclip.AutoClip | fastclip.ZClip) -> tuple[list[float], list[float]]:
    """The norms before and after the clipper, of every step of a training."""
    model, loss = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    before, after = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(step).backward()
        before.append(float(clipper.clip_(model.parameters())))
        after.append(float(fastclip.grad_norms(model).total))
        optimizer.step()
    return before, after


def agc_ratios() -> tuple[Tensor, Tensor]:
    """|gradient| / |weight| of every unit of a spike's step, before and after AGC."""
    model, loss = regression()
    (loss(0) * 20).backward()
    weights = [p for p in model.parameters() if p.ndim == 2]

    def ratios() -> Tensor:
        return torch.cat([p.grad.norm(dim=1) / p.detach().norm(dim=1) for p in weights])

    before = ratios()
    fastclip.AGC(clipping=0.01).clip_(model.parameters())
    return before, ratios()


def adaptive(out: Path) -> None:
    """The limits of AutoClip, ZClip and AGC at work."""
    figure, axes = figure_of(2, 2)
    clippers = {"AutoClip(percentile=10)": fastclip.AutoClip(percentile=10),
                "ZClip()": fastclip.ZClip()}  # fmt: skip
    for one, (name, clipper) in zip(axes, clippers.items(), strict=False):
        before, after = norms_under(clipper)
        one.plot(before, color=BEFORE, lw=0.8, label="norm")
        one.plot(after, color=AFTER, lw=1.2, label="after clipping")
        one.set(yscale="log", xlabel="step")
        one.set_title(name, fontsize=9)
        one.legend(fontsize=8)
    before, after = agc_ratios()
    for one, values, title, colour in (
        (axes[2], before, "each unit's |gradient| / |weight|", BEFORE),
        (axes[3], after, "the same after AGC(clipping=0.01)", AFTER),
    ):
        bins = torch.logspace(-4, 1, 40).tolist()
        one.hist(values.clamp(min=1e-4).tolist(), bins=bins, color=colour)
        one.set(xscale="log", ylabel="units")
        one.axvline(0.01, color="black", lw=0.8, ls="--")
        one.set_title(title, fontsize=9)
    figure.savefig(out / "adaptive.png", dpi=120)


def history(model: nn.Module, steps: int, lr: float, limit: float, scale: float = 1.0) -> list:
    """The monitor's rows of a short training."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of just what these pictures show
        monitor = fastclip.NormMonitor(model, optimizer, every=1, by="depth")
        for _ in range(steps):
            optimizer.zero_grad()
            (model(torch.randn(64, 16)).square().mean() * scale).backward()
            monitor.observe(fastclip.clip_grad_norm_(model.parameters(), limit))
            optimizer.step()
        monitor.close()
    return list(monitor.history)


def layers(out: Path, name: str, model: nn.Module, title: str) -> None:
    """Norms of each layer of the last row, a bar each."""
    row = history(model, 6, 1e-3, float("inf"))[-1]
    parts = {k.partition("/")[2]: v for k, v in row.items() if k.startswith("grad_norm/")}
    figure, (axes,) = figure_of(1)
    floor = min([v for v in parts.values() if v > 0]) / 10
    bars = axes.bar(list(parts), [max(v, floor) for v in parts.values()], color=AFTER)
    for bar, value in zip(bars, parts.values(), strict=True):
        if value == 0:
            bar.set_color(BEFORE)
            axes.annotate("0", (bar.get_x() + bar.get_width() / 2, floor), ha="center", fontsize=9)
    axes.set(yscale="log", xlabel="layer, from the input", ylabel="norm of its gradients")
    axes.set_title(title, fontsize=9)
    figure.savefig(out / f"{name}.png", dpi=120)


def exploding(out: Path) -> None:
    """The gradient norm at too high a rate, without and with a limit."""
    figure, (axes,) = figure_of(1)
    for limit, colour in ((float("inf"), BEFORE), (1.0, AFTER)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                              nn.Linear(64, 16))  # fmt: skip
        norms = [row["grad_norm"] for row in history(model, 8, 0.5, limit, scale=100.0)]
        axes.plot(norms, "o-", color=colour, label=f"max_norm={limit:g}")
    axes.set(yscale="log", xlabel="step", ylabel="grad_norm")
    axes.legend(fontsize=8)
    figure.savefig(out / "charts_exploding.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    adaptive(out)
    torch.manual_seed(0)
    deep = [layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    layers(out, "charts_vanishing", nn.Sequential(*deep), "eight sigmoid layers")
    dead = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 16))  # fmt: skip
    nn.init.constant_(dead[2].bias, -100.0)
    layers(out, "charts_dead", dead, "the second ReLU never fires")
    exploding(out)


if __name__ == "__main__":
    main()
