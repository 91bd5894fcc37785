"""Accuracy against what was chosen for a run: clients per round, generated samples (gptfl.md, sections 7.4, 7.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flgen.figures.banded_curves import Curve, draw_curve, name_curves, panels, share_limits, tick_points
from flgen.figures.paper import paper_style, save_figure


def draw_marked_curves(
    curves: Sequence[Curve], output: str | Path, *, xlabel: str, ylabel: str, from_zero: bool = False
) -> tuple[Path, Path]:
    """Draw a curve per method, one hue each, with a mark at every run.

    Args:
        curves: Accuracy in [0, 1] over what was chosen.
        output: The PNG; an SVG of the same name is saved beside it.
        xlabel: What was chosen.
        ylabel: What was measured.
        from_zero: Whether the x-axis begins at 0.

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
        if from_zero:
            axes.set_xlim(left=0)
        tick_points(axes, curves)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        name_curves(figure, lines, labels)
        return save_figure(figure, output)
