"""How far the masks of two successive models are apart, and the quality, over rounds (prism.md, section 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flgen.figures.banded_curves import Curve, differ_widely, draw_curve, name_curves, panels, reference_line
from flgen.figures.paper import paper_style, save_figure

COIN_TOSSES = 0.5  # the distance of two masks whose bits are fair and independent


def draw_mask_drift(
    drifts: Sequence[Curve], measures: Sequence[Curve], output: str | Path, *, ylabel: str
) -> tuple[Path, Path]:
    """Draw lambda, the distance of the masks of the old model and the new aggregate, and below it a measure.

    Args:
        drifts: lambda in [0, 1] by round, a curve per run.
        measures: What was measured, by round, in the same order; a run without it has a curve of no points.
        output: The PNG; an SVG of the same name is saved beside it.
        ylabel: What was measured.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    labels = [curve.label for curve in drifts]
    measured = np.concatenate([curve.mean for curve in measures])
    with paper_style():
        figure, found = panels(1 + (len(measured) > 0), labels)
        lines = [draw_curve(found[0], curve, number) for number, curve in enumerate(drifts)]
        reference_line(found[0], COIN_TOSSES, "two masks of coin tosses")
        if differ_widely(np.concatenate([curve.mean for curve in drifts])):
            found[0].set_yscale("log")
        else:
            found[0].set_ylim(0, 1.12 * max(COIN_TOSSES, found[0].dataLim.y1))  # the line's name has room
        found[0].set_ylabel(r"mask distance $\lambda_t$")
        if len(measured):
            for number, curve in enumerate(measures):
                draw_curve(found[1], curve, number)
            if differ_widely(measured):
                found[1].set_yscale("log")
            else:
                found[1].set_ylim(bottom=0)
            found[1].set_ylabel(ylabel)
        found[-1].set_xlabel("communication round")
        found[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        name_curves(figure, lines, labels)
        return save_figure(figure, output)
