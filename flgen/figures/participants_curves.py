"""Accuracy after the last round against the number of clients in a round (gptfl.md, section 7.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flgen.figures.banded_curves import Curve, draw_curve, name_curves, panels, share_limits, tick_points
from flgen.figures.paper import paper_style, save_figure


def draw_participants(curves: Sequence[Curve], output: str | Path, *, ylabel: str) -> tuple[Path, Path]:
    """Draw the accuracy that a budget of rounds gives with a few and with many clients in each, one hue per method.

    Args:
        curves: Accuracy in [0, 1] over |S|, the clients per round; a curve per method.
        output: The PNG; an SVG of the same name is saved beside it.
        ylabel: What was measured.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    labels = [curve.label for curve in curves]
    with paper_style():
        figure, (axes,) = panels(1, labels)
        lines = [draw_curve(axes, curve, number, marked=True) for number, curve in enumerate(curves)]
        share_limits(axes, curves)
        tick_points(axes, curves)
        axes.set_xlabel("clients per round")
        axes.set_ylabel(ylabel)
        name_curves(figure, lines, labels)
        return save_figure(figure, output)
