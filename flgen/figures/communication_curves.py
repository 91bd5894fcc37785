"""Accuracy over what clients and server have exchanged, and when a target was reached (gptfl.md, section 7.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from flgen.figures.banded_curves import (
    Curve,
    differ_widely,
    draw_curve,
    name_curves,
    panels,
    reference_line,
    share_limits,
)
from flgen.figures.paper import hue_and_dashes, paper_style, save_figure


def draw_communication(
    curves: Sequence[Curve], output: str | Path, *, ylabel: str, target: float, reached: Sequence[float]
) -> tuple[Path, Path]:
    """Draw accuracy over megabytes, one hue per run, with the target as a line and a diamond where it was reached.

    The axis of megabytes is logarithmic where one run exchanges more than twenty times as much as another.

    Args:
        curves: Accuracy in [0, 1] over megabytes (10^6 bytes) up and down so far, a curve per run.
        output: The PNG; an SVG of the same name is saved beside it.
        ylabel: What was measured.
        target: The accuracy that is asked for, in [0, 1].
        reached: Megabytes to the target of each run; inf if it was never reached.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    labels = [curve.label for curve in curves]
    with paper_style():
        figure, (axes,) = panels(1, labels)
        lines = [draw_curve(axes, curve, number) for number, curve in enumerate(curves)]
        for number, megabytes in enumerate(reached):
            if math.isfinite(megabytes):
                hue, _ = hue_and_dashes(number)
                axes.plot(megabytes, target, marker="D", markersize=4, color=hue, markerfacecolor="white", zorder=4)
        reference_line(axes, target, f"target {target:g}", side="left")
        share_limits(axes, curves, target)
        if differ_widely(np.array([curve.x[-1] for curve in curves])):
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel("MB sent and received by all clients")
        axes.set_ylabel(ylabel)
        name_curves(figure, lines, labels)
        return save_figure(figure, output)
