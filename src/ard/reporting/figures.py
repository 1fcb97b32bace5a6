"""Figures as SVG text: legible in print and for the colour-blind. The one home of matplotlib."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ard.core.extras import importing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's.
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")  # Not as many as colours: their pairs repeat late.


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
    notes: Sequence[str] = ()
    """A word beside each point."""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One panel of a row of matrices; the first row is at the top."""

    title: str
    values: Sequence[Sequence[float]]
    x_ticks: Sequence[str]
    y_ticks: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class BlockGrid:
    """One panel of a row of square matrices whose blocks are of a few kinds; the first row is at the top."""

    title: str
    kinds: Sequence[Sequence[int]]
    ticks: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes of a figure with several."""

    title: str
    y_label: str
    curves: Sequence[Curve]
    floor: tuple[str, float] | None = None
    """A named level."""


@contextmanager
def _our_style() -> Iterator[None]:
    """Our settings of matplotlib for the time of a figure; they are the user's again afterwards."""
    with importing("matplotlib", "demo"):
        import matplotlib as mpl
    with mpl.rc_context({"svg.hashsalt": "ard", "svg.fonttype": "none", "font.size": 10}):
        yield


@_our_style()
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
    figure, ((axes,),) = _subplots(1, 1, (10.0, 3.8))
    axes.set(xlabel=x_label, xscale=x_scale, yscale=y_scale)  # Before the ticks, which a change of scale discards.
    _draw(axes, Panel(title=title, y_label=y_label, curves=curves, floor=floor), whole_x=whole_x)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=3.5)
    return _svg(figure)


@_our_style()
def plot_panels(
    rows: Sequence[Sequence[Panel]],
    *,
    x_label: str,
    x_scale: str = "linear",
    y_scale: str = "log",
    whole_x: bool = True,
    legend_columns: int = 4,
) -> str:
    """Rows of panels as an SVG element, with one legend for all of them at the bottom."""
    count = max(len(row) for row in rows)
    size = (max(7.5, 3.1 * count), 2.7 * len(rows) + 0.9)
    figure, grid = _subplots(len(rows), count, size)
    handles: dict[str, Any] = {}
    for number, (line, row) in enumerate(zip(grid, rows, strict=True), 1):
        for axes, panel in zip(line, row, strict=True):
            axes.set(xscale=x_scale, yscale=y_scale)  # Before the ticks, as in plot.
            _draw(axes, panel, whole_x=whole_x)
            axes.set_xlabel(x_label if number == len(rows) else "")
            axes.set_ylabel(panel.y_label if panel is row[0] else "")
            handles.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = min(legend_columns, len(handles))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return _svg(figure)


@_our_style()
def heat_maps(
    panels: Sequence[HeatMap], *, title: str, x_label: str, y_label: str, values_label: str, digits: int | None = 2
) -> str:
    """Matrices of values in [0, 1] side by side as an SVG element, NaN blank; `digits` writes them into the cells."""
    rows = max(len(panel.values) for panel in panels)
    size = (1.2 + 2.4 * len(panels), 1.4 + max(1.6, 0.26 * rows))
    figure, grid = _subplots(1, len(panels), size)
    image = None
    for axes, panel in zip(grid[0], panels, strict=True):
        image = axes.imshow(panel.values, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_title(panel.title, fontsize=9)
        axes.set_xticks(range(len(panel.x_ticks)), panel.x_ticks, fontsize=8)
        axes.set_yticks(range(len(panel.y_ticks)), panel.y_ticks, fontsize=8)
        axes.set_xlabel(x_label, fontsize=9)
        for y, line in enumerate(panel.values if digits is not None else []):
            for x, value in enumerate(line):
                if math.isnan(value):
                    continue
                colour = "black" if value > 0.5 else "white"
                axes.text(x, y, f"{value:.{digits}f}", color=colour, fontsize=7, ha="center", va="center")
    grid[0][0].set_ylabel(y_label, fontsize=9)
    figure.colorbar(image, ax=grid[0].tolist(), label=values_label, shrink=0.9)
    figure.suptitle(title, fontsize=11)
    return _svg(figure)


@_our_style()
def block_grids(
    panels: Sequence[BlockGrid],
    *,
    kinds: Sequence[tuple[str, str]],
    divisions: int,
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Square matrices of blocks side by side, as an SVG element; `kinds` are (meaning, colour).

    Each block is divided by fine lines into `divisions` by `divisions` cells.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    colours, size = ListedColormap([colour for _, colour in kinds]), len(panels[0].ticks)
    small = 8 if size <= 10 else 6
    figure, grid = _subplots(1, len(panels), (2.6 * len(panels), 3.5))
    for axes, panel in zip(grid[0], panels, strict=True):
        axes.pcolormesh(panel.kinds, cmap=colours, vmin=0, vmax=len(kinds) - 1)
        for line in range(1, size * divisions):
            style = {"color": "white", "linewidth": 0.4 if line % divisions else 2}
            axes.axhline(line / divisions, **style)
            axes.axvline(line / divisions, **style)
        axes.set(title=panel.title, xlabel=x_label, aspect="equal", xlim=(0, size), ylim=(size, 0))
        axes.set_xticks([step + 0.5 for step in range(size)], panel.ticks, fontsize=small)
        axes.set_yticks([step + 0.5 for step in range(size)], panel.ticks, fontsize=small)
        axes.tick_params(length=0)
    grid[0][0].set_ylabel(y_label)
    swatches = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="#888888") for _, colour in kinds]
    meanings = [meaning for meaning, _ in kinds]
    figure.legend(swatches, meanings, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return _svg(figure)


def require_matplotlib() -> None:
    """InputError unless matplotlib can be imported; a long run asks before it starts."""
    with importing("matplotlib", "demo"):
        import matplotlib as mpl  # noqa: F401


def _draw(axes: Any, panel: Panel, *, whole_x: bool) -> None:
    """The curves of one panel with their ranges and the floor."""
    upwards = [y for curve in panel.curves for y in (*curve.y, *curve.low, *curve.high)]
    _keep_open(axes, "x", [x for curve in panel.curves for x in curve.x])
    _keep_open(axes, "y", [*upwards, *([panel.floor[1]] if panel.floor else [])])
    for curve in panel.curves:
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
        for note, *place in zip(curve.notes, curve.x, curve.y, strict=False):
            beside = (5, -9 if curve.style % 2 else 4)  # Neighbours of two curves do not hide each other's.
            axes.annotate(note, place, beside, textcoords="offset points", fontsize=7, color=colour)
            axes.margins(0.1)
    if panel.floor:
        axes.axhline(panel.floor[1], color="#666666", linewidth=1.2, linestyle=(0, (1, 1)), label=panel.floor[0])
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=True, which="major", alpha=0.3)
    if whole_x:
        axes.set_xticks(sorted({x for curve in panel.curves for x in curve.x}))


def _keep_open(axes: Any, name: str, values: Sequence[float]) -> None:
    """Give a logarithmic axis limits where matplotlib finds none: all values alike, or none of them positive.

    Before anything is drawn, because afterwards matplotlib looks for its own limits first.
    """
    if getattr(axes, f"get_{name}scale")() != "log":
        return
    shown = [value for value in values if math.isfinite(value) and value > 0]
    if not shown:
        axes.set(**{f"{name}scale": "linear"})
    elif max(shown) < 1.001 * min(shown):
        axes.set(**{f"{name}lim": (min(shown) / 2, max(shown) * 2)})


def _svg(figure: Any) -> str:
    """The finished figure as an SVG element, the same text for the same content."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of its own, which pyplot and its windows know nothing of, and its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
