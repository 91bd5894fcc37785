"""Curves with a band of one standard deviation over repetitions: what most figures of measurements are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING
from flgen.figures.paper import (
    COLUMN_WIDTH,
    GREY,
    MOST_MARKED_POINTS,
    hue_and_dashes,
    legend_below,
    legend_height,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT = 2.1
MOST_TICKED_POINTS = 8
WIDE = 20
"""Values that differ by more than this factor get a logarithmic axis."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The mean of repetitions along an axis.

    Args:
        label: Its name in the legend.
        x: Where it was measured, ascending, float (points,).
        mean: Over repetitions, float (points,); what is not finite is left out of the drawing.
        std: Sample standard deviation over repetitions, float (points,); NaN where there is one alone, which has no
            band.
    """

    label: str
    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def panels(count: int, labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure one column of a paper wide with axes above each other, and room for a legend below.

    Args:
        count: Number of axes; they share x.
        labels: The names that the legend will have.
    """
    from matplotlib.figure import Figure

    height = 0.25 + PANEL_HEIGHT * count + legend_height(labels)
    figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
    found = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0].tolist()
    for axes in found:
        axes.grid()
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def draw_curve(axes: Axes, curve: Curve, number: int, *, marked: bool = False) -> Any:
    """Draw a curve and its band, and return the line.

    Args:
        axes: Where.
        curve: What.
        number: Which hue, from 0.
        marked: Mark every point; else only while they are few.
    """
    import numpy as np

    hue, dashes = hue_and_dashes(number)
    marker = "o" if marked or len(curve.x) <= MOST_MARKED_POINTS else None
    mean = np.where(np.isfinite(curve.mean), curve.mean, np.nan)
    (line,) = axes.plot(
        curve.x, mean, color=hue, linestyle=dashes, linewidth=1.2, marker=marker, markersize=2.5, zorder=3
    )
    if np.isfinite(curve.std).any():
        axes.fill_between(curve.x, mean - curve.std, mean + curve.std, color=hue, alpha=0.2, linewidth=0, zorder=2)
    return line


def name_curves(figure: Figure, lines: Sequence[Any], labels: Sequence[str]) -> None:
    """Name curves in a legend below the axes."""
    legend_below(figure, lines, labels, handlelength=2.2)


def reference_line(axes: Axes, height: float, text: str, *, side: Literal["left", "right"] = "right") -> None:
    """Draw a thin line at a height that means something.

    Args:
        axes: Where.
        height: The height.
        text: What it means.
        side: The end of the line that the text stands above, where curves are elsewhere.
    """
    axes.axhline(height, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    axes.annotate(
        text,
        (0 if side == "left" else 1, height),
        xycoords=axes.get_yaxis_transform(),
        xytext=(2 if side == "left" else -2, 1.5),
        textcoords="offset points",
        ha=side,
        va="bottom",
        fontsize=6,
        color="0.4",
    )


def tick_points(axes: Axes, curves: Sequence[Curve]) -> None:
    """Tick the x axis where there are points, while these are few."""
    from matplotlib.ticker import MaxNLocator

    found = sorted({float(x) for curve in curves for x in curve.x})
    if len(found) <= MOST_TICKED_POINTS:
        axes.set_xticks(found, [f"{x:g}" for x in found])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def share_limits(axes: Axes, curves: Sequence[Curve], *heights: float) -> None:
    """Let an axis of shares, such as accuracies, begin at 0 and end at 1 or a little above what it shows.

    Args:
        axes: Where.
        curves: What it shows.
        heights: What else it shows.
    """
    import numpy as np

    tops = [curve.mean + np.nan_to_num(curve.std) for curve in curves]
    highest = max([*heights, *(float(value) for top in tops for value in top if math.isfinite(value))], default=0.0)
    if highest <= 1:
        axes.set_ylim(0, min(1.0, 1.06 * highest) if highest > 0 else 1.0)
    else:
        axes.set_ylim(bottom=0)


def differ_widely(values: np.ndarray) -> bool:
    """Return whether positive values differ by more than the factor `WIDE`; what is not finite does not count."""
    import numpy as np

    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > WIDE * finite.min())
