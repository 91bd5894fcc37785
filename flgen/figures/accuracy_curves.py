"""Local test accuracy over the rounds of several runs, after aggregation and after training (dispfl.md, 10.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.figures.paper import (
    COLUMN_WIDTH,
    MOST_MARKED_POINTS,
    hue_and_dashes,
    legend_below,
    legend_height,
    paper_style,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


@dataclass(frozen=True)
class AccuracyCurves:
    """What one run has to show.

    Args:
        label: Its name in the legend.
        aggregated: Mean accuracy on the clients' own test data after aggregation, in [0, 1], by round; may be empty.
        trained: The same after local training.
    """

    label: str
    aggregated: Mapping[int, float] = field(default_factory=dict)
    trained: Mapping[int, float] = field(default_factory=dict)


def draw_accuracy_curves(runs: Sequence[AccuracyCurves], output: str | Path) -> tuple[Path, Path]:
    """Draw a hue per run, dark after aggregation and light after training, one column of a paper wide.

    Args:
        runs: At least one.
        output: The PNG; an SVG of the same name is saved beside it.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    from matplotlib.figure import Figure
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.ticker import MaxNLocator

    labels = [run.label for run in runs]
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.35 + legend_height(labels)), layout="constrained")
        axes = figure.add_subplot()
        pairs: list[Any] = [_draw_run(axes, run, number) for number, run in enumerate(runs)]
        axes.set_xlabel("communication round")
        axes.set_ylabel("Accuracy (on local data)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_ylim(0, min(1.0, 1.06 * axes.dataLim.ymax) if axes.dataLim.ymax > 0 else 1.0)
        axes.grid()
        axes.spines[["top", "right"]].set_visible(False)
        legend_below(
            figure,
            pairs,
            labels,
            title=_title(runs),
            title_fontsize=7,
            handlelength=3.2,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.2)},
        )
        return save_figure(figure, output)


def _draw_run(axes: Axes, run: AccuracyCurves, number: int) -> tuple[Line2D, ...]:
    from matplotlib.colors import to_rgb

    colour, dashes = hue_and_dashes(number)
    hue = to_rgb(colour)
    dark = tuple(0.8 * part for part in hue)
    light = tuple(0.5 + 0.5 * part for part in hue)
    lines = []
    # The light curve lies below: where both are the same, the dark one is seen.
    for curve, shade, height in ((run.aggregated, dark, 3.0), (run.trained, light, 2.5)):
        if curve:
            rounds = sorted(curve)
            values = [curve[t] for t in rounds]
            marker = "o" if len(rounds) <= MOST_MARKED_POINTS else None
            lines += axes.plot(
                rounds,
                values,
                color=shade,
                linestyle=dashes,
                linewidth=1.2,
                marker=marker,
                markersize=2,
                zorder=height,
            )
    return tuple(lines)


def _title(runs: Sequence[AccuracyCurves]) -> str:
    drawn = {
        "dark: after aggregation": any(run.aggregated for run in runs),
        "light: after training": any(run.trained for run in runs),
    }
    return ", ".join(text for text, present in drawn.items() if present)
