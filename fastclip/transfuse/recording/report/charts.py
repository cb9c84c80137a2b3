"""Charts of a report: SVG as data URIs, so that a page needs nothing but itself."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Letters as outlines look alike on every machine; a fixed salt gives equal bytes for equal data.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "fastclip",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
BINS = 20
SIZE = (5.6, 3.4)  # inches
ROW_INCHES = 0.2  # of a heat map


class Chart(NamedTuple):
    """A picture, and what it shows in words for those who do not see it."""

    title: str
    text: str
    uri: str


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a picture as an address that holds them; `kind` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def lines(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    log: bool = False,
    ylim: tuple[float, float] | None = None,
) -> Chart | None:
    """Curves over steps; None where no series has a point.

    Args:
        title: what is drawn.
        series: (steps, values) under their labels; gaps where a value is NaN.
        log: a logarithmic y axis, without what is not positive.
        ylim: the y axis's range.
    """
    drawn = {
        label: (steps, [v if not log or v > 0 else math.nan for v in values])
        for label, (steps, values) in series.items()
    }
    drawn = {label: xy for label, xy in drawn.items() if np.isfinite(xy[1]).any()}
    if not drawn:
        return None

    def draw(axes: Axes) -> None:
        for number, (label, (steps, values)) in enumerate(drawn.items()):
            few = len(steps) <= 30
            # A label that begins with _ would be left out of the legend.
            axes.plot(
                steps, values, ".-" if few else "-", linewidth=1.2, markersize=4, gid=f"s{number}"
            )
            axes.lines[-1].set_label(plain(label))
        axes.set(xlabel="step")
        if ylim is not None:  # None would end the scaling to what is drawn
            axes.set_ylim(ylim)
        if log:
            axes.set_yscale("log")
        if len(drawn) > 1:
            axes.legend(frameon=False, fontsize="small")

    last = ", ".join(f"{label} {_last(values):.4g}" for label, (_, values) in drawn.items())
    return _chart(title, f"{title} by step; at the end {last}", draw)


def heat_map(title: str, steps: Sequence[float], rows: Mapping[str, Sequence[float]]) -> Chart:
    """Positive numbers of many parts over steps, as colours on a logarithmic scale."""
    values = np.array([list(row) for row in rows.values()], float)  # [parts, steps]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(np.where(values > 0, values, np.nan))

    def draw(axes: Axes) -> None:
        mesh = axes.pcolormesh(
            np.arange(len(steps) + 1), np.arange(len(rows) + 1), logs, cmap="viridis"
        )
        mesh.set_rasterized(True)
        shown = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int))
        axes.set_xticks(shown + 0.5, [f"{steps[i]:g}" for i in shown])
        labels = [plain(name) for name in rows]
        axes.set_yticks(np.arange(len(rows)) + 0.5, labels, fontsize=7)
        axes.invert_yaxis()
        axes.grid(False)
        axes.set(xlabel="step")
        axes.figure.colorbar(mesh, ax=axes, label="log10")

    height = max(SIZE[1], 1.2 + ROW_INCHES * len(rows))
    finite = values[np.isfinite(values) & (values > 0)]
    span = f"from {finite.min():.3g} to {finite.max():.3g}" if finite.size else "without a number"
    return _chart(title, f"{title} of {len(rows)} parts, {span}", draw, (2 * SIZE[0], height))


def histogram(title: str, values: Sequence[float]) -> Chart | None:
    """How many images have which score in 0..1; None where no score is finite."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return None
    left_out = len(values) - finite.size
    median = float(np.median(finite))

    def draw(axes: Axes) -> None:
        axes.hist(finite.clip(0, 1), bins=BINS, range=(0, 1), color="tab:blue", rwidth=0.92)
        axes.axvline(median, color="black", linestyle="--", linewidth=1)
        axes.set(xlabel="score", ylabel="images", xlim=(0, 1))

    text = f"{title}: {finite.size} images, median {median:.4f}"
    return _chart(title, text + (f"; {left_out} without a score" if left_out else ""), draw)


def plain(text: str) -> str:
    """Text that matplotlib draws as it is: no formula between dollars, no hidden label."""
    escaped = text.replace("$", r"\$")
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped


def _last(values: Sequence[float]) -> float:
    return next((v for v in reversed(values) if math.isfinite(v)), math.nan)


def _chart(title: str, text: str, draw: Any, size: tuple[float, float] = SIZE) -> Chart:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with rc_context(STYLE):
        figure: Figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Chart(title, text, data_uri(stream.getvalue(), "image/svg+xml"))
