"""Accuracy against the amount of synthetic data, before and after clients train (gptfl.md, section 7.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flgen.figures.banded_curves import Curve, draw_curve, name_curves, panels, share_limits, tick_points
from flgen.figures.paper import paper_style, save_figure


def draw_synthetic_amount(
    curves: Sequence[Curve], output: str | Path, *, xlabel: str, ylabel: str
) -> tuple[Path, Path]:
    """Draw accuracy over the amount of synthetic data that a server has trained on, one hue per curve.

    Args:
        curves: Accuracy in [0, 1] over the amount: of server training alone, and of what federated methods make of it.
        output: The PNG; an SVG of the same name is saved beside it.
        xlabel: What the amount counts.
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
        axes.set_xlim(left=0)
        tick_points(axes, curves)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        name_curves(figure, lines, labels)
        return save_figure(figure, output)
