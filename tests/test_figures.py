"""Figures: what is drawn when there is little to draw."""

import pytest

from ard.reporting.figures import Curve, Panel, plot_panels


@pytest.mark.parametrize("value", [1e-6, 0.0999999, 100.0, 0.0, float("nan")])
def test_one_point_is_drawn_on_any_axes_whatever_its_value(value: float) -> None:
    curve = Curve(label="one", x=[value], y=[value], low=[value], high=[value], style=0, marked=True)
    rows = [[Panel(title="alone", y_label="y", curves=[curve])]]
    for scale in ("linear", "log"):
        figure = plot_panels(rows, x_label="x", x_scale=scale, y_scale=scale, whole_x=False)
        assert figure.startswith("<svg")
