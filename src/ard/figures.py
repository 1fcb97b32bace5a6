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


def plot(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, whole_x: bool = False) -> str:
    """Curves over a logarithmic y axis, as an SVG element; `whole_x` puts ticks on whole numbers only."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(10, 3.8), layout="constrained")
    for curve in curves:
        axes.plot(
            curve.x,
            curve.y,
            label=curve.label,
            color=COLOURS[curve.style % len(COLOURS)],
            linestyle=DASHES[curve.dash % len(DASHES)],
            marker=MARKERS[curve.style % len(MARKERS)] if curve.marked else None,
            linewidth=1.6,
            markersize=5,
        )
    axes.set(title=title, xlabel=x_label, ylabel=y_label, yscale="log")
    if whole_x:
        axes.set_xticks(sorted({x for curve in curves for x in curve.x}))
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=3.5)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def require_matplotlib() -> None:
    """MissingExtraError unless matplotlib is installed; a long run asks before it starts."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "demo") from None


def _pyplot() -> Any:
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "ard", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    return plt
