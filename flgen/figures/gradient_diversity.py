"""How differently clients want to change the model, over the rounds (gptfl.md, section 7.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flgen.figures.banded_curves import Curve, differ_widely, draw_curve, name_curves, panels, reference_line
from flgen.figures.paper import paper_style, save_figure


def draw_gradient_diversity(
    diversity: Sequence[Curve], cosine: Sequence[Curve], output: str | Path
) -> tuple[Path, Path]:
    """Draw the gradient diversity and, below it, the mean cosine between two clients' updates, one hue per run.

    Args:
        diversity: GD_r by round r, a curve per run; a line at 1 stands for orthogonal updates.
        cosine: Mean pairwise cosine by round, in the same order and with the same names; a run without one has a curve
            of no points.
        output: The PNG; an SVG of the same name is saved beside it.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    labels = [curve.label for curve in diversity]
    has_cosine = any(len(curve.x) for curve in cosine)
    with paper_style():
        figure, found = panels(1 + has_cosine, labels)
        upper = found[0]
        lines = [draw_curve(upper, curve, number) for number, curve in enumerate(diversity)]
        if differ_widely(np.concatenate([curve.mean for curve in diversity])):
            upper.set_yscale("log")  # updates that cancel make it as large as one likes
        else:
            upper.set_ylim(bottom=0)
        reference_line(upper, 1.0, "orthogonal updates")
        upper.set_ylabel("gradient diversity")
        if has_cosine:
            for number, curve in enumerate(cosine):
                draw_curve(found[1], curve, number)
            reference_line(found[1], 0.0, "orthogonal updates")
            found[1].set_ylabel("mean cosine of two updates")
        found[-1].set_xlabel("communication round")
        found[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        name_curves(figure, lines, labels)
        return save_figure(figure, output)
