"""Figures as SVG text: legible in print and for the colour-blind. The one home of matplotlib."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ard.errors import MissingExtraError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's.
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure; `style` gives its colour, so that related curves share it, and `dash` its dashes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    dash: int = 0
    marked: bool = False
    joined: bool = True
    """Whether a line joins the points."""
    low: Sequence[float] = ()
    """With `high`: the range over seeds, as error bars."""
    high: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One panel of a row of matrices; the first row is at the top."""

    title: str
    values: Sequence[Sequence[float]]
    x_ticks: Sequence[str]
    y_ticks: Sequence[str]


def plot(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    whole_x: bool = False,
    x_scale: str = "linear",
    y_scale: str = "log",
    floor: tuple[str, float] | None = None,
) -> str:
    """Curves as an SVG element; `whole_x` puts ticks on whole numbers only, `floor` draws a named level."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(10, 3.8), layout="constrained")
    for curve in curves:
        colour = COLOURS[curve.style % len(COLOURS)]
        axes.plot(
            curve.x,
            curve.y,
            label=curve.label,
            color=colour,
            linestyle=DASHES[curve.dash % len(DASHES)] if curve.joined else "none",
            marker=MARKERS[curve.style % len(MARKERS)] if curve.marked else None,
            linewidth=1.6,
            markersize=5,
        )
        if curve.low:
            axes.vlines(curve.x, curve.low, curve.high, color=colour, linewidth=1.2)
    if floor:
        axes.axhline(floor[1], color="#666666", linewidth=1.2, linestyle=(0, (1, 1)), label=floor[0])
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale=x_scale, yscale=y_scale)
    if whole_x:
        axes.set_xticks(sorted({x for curve in curves for x in curve.x}))
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=3.5)
    return _svg(figure)


def heat_maps(
    panels: Sequence[HeatMap], *, title: str, x_label: str, y_label: str, values_label: str, digits: int | None = 2
) -> str:
    """Matrices of values in [0, 1] side by side, as an SVG element; `digits` writes the values into the cells."""
    pyplot = _pyplot()
    rows = max(len(panel.values) for panel in panels)
    size = (1.2 + 2.4 * len(panels), 1.4 + max(1.6, 0.26 * rows))
    figure, grid = pyplot.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    image = None
    for axes, panel in zip(grid[0], panels, strict=True):
        image = axes.imshow(panel.values, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_title(panel.title, fontsize=9)
        axes.set_xticks(range(len(panel.x_ticks)), panel.x_ticks, fontsize=8)
        axes.set_yticks(range(len(panel.y_ticks)), panel.y_ticks, fontsize=8)
        axes.set_xlabel(x_label, fontsize=9)
        for y, line in enumerate(panel.values if digits is not None else []):
            for x, value in enumerate(line):
                colour = "black" if value > 0.5 else "white"
                axes.text(x, y, f"{value:.{digits}f}", color=colour, fontsize=7, ha="center", va="center")
    grid[0][0].set_ylabel(y_label, fontsize=9)
    figure.colorbar(image, ax=grid[0].tolist(), label=values_label, shrink=0.9)
    figure.suptitle(title, fontsize=11)
    return _svg(figure)


def require_matplotlib() -> None:
    """MissingExtraError unless matplotlib is installed; a long run asks before it starts."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "demo") from None


def _svg(figure: Any) -> str:
    """The finished figure as an SVG element, the same text for the same content."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    _pyplot().close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _pyplot() -> Any:
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "ard", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    return plt
