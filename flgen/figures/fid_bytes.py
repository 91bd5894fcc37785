"""What runs are worth over what their clients have sent up, a point per run (prism.md, sections 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flgen.deferred import TYPE_CHECKING
from flgen.figures.banded_curves import Curve, differ_widely
from flgen.figures.comparison_bars import short_label
from flgen.figures.paper import COLUMN_WIDTH, GREY, HUES, legend_below, legend_height, paper_style, save_figure
from flgen.figures.point_labels import label_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "D", "^", "P")  # of the first runs, of those after all hues, and so on
COUNT_MARKERS = ("s", "v", "<", ">")
LEAST_DECADES = 0.5  # left of the least bytes and right of the most


@dataclass(frozen=True, eq=False)
class Spending:
    """What one run has sent up and what it was worth.

    Args:
        label: Its name.
        path: The measure over the 10^6 bytes that all clients have sent up so far; the last point is the run's.
        counts: The 10^6 bytes of the last point if they are counted otherwise, by the name of the count.
    """

    label: str
    path: Curve
    counts: Mapping[str, float] = field(default_factory=dict)


def draw_fid_bytes(
    runs: Sequence[Spending], output: str | Path, *, ylabel: str, paths: bool = False
) -> tuple[Path, Path]:
    """Draw a point per run over a logarithmic axis of bytes, with its name beside it and a whisker over seeds.

    Where a run has other counts of its bytes, hollow marks stand on the point's level, joined to it by a thin line.

    Args:
        runs: At least one; their megabytes are above 0, and their last measure is finite.
        output: The PNG; an SVG of the same name is saved beside it.
        ylabel: What was measured.
        paths: Whether the way to each point is drawn too, round by round.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    import numpy as np
    from matplotlib.figure import Figure

    counts = list(dict.fromkeys(name for run in runs for name in run.counts))
    keys = ["bytes sent", *counts] if counts else []
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.6 + legend_height(keys)), layout="constrained")
        axes = figure.add_subplot()
        places = [_draw_run(axes, run, number, counts, paths) for number, run in enumerate(runs)]
        shown = np.concatenate([run.path.mean if paths else run.path.mean[-1:] for run in runs])
        if differ_widely(shown):
            axes.set_yscale("log")
        axes.margins(y=0.15)
        if axes.get_ylim()[0] < 0 <= axes.dataLim.y0:
            axes.set_ylim(bottom=0)
        _bytes_axis(axes, runs, paths)
        axes.set_xlabel("MB sent up by all clients")
        axes.set_ylabel(ylabel)
        axes.grid()
        axes.spines[["top", "right"]].set_visible(False)
        if keys:
            marks = [_mark(axes, marker) for marker in (MARKERS[0], *COUNT_MARKERS[: len(counts)])]
            legend_below(figure, marks, keys, handlelength=1.0)
        others = [place for run in runs for place in _others(run, paths) if all(map(math.isfinite, place))]
        hues = [HUES[number % len(HUES)] for number in range(len(runs))]
        label_points(axes, places, [short_label(run.label) for run in runs], hues, others)
        return save_figure(figure, output)


def _draw_run(axes: Axes, run: Spending, number: int, counts: Sequence[str], paths: bool) -> tuple[float, float]:
    """Draw what there is of a run, and return where its point is."""
    hue, marker = HUES[number % len(HUES)], MARKERS[number // len(HUES) % len(MARKERS)]
    x, y, std = float(run.path.x[-1]), float(run.path.mean[-1]), float(run.path.std[-1])
    if paths:
        axes.plot(run.path.x, run.path.mean, color=hue, linewidth=0.8, alpha=0.55, zorder=2)
    if run.counts:
        ends = [x, *run.counts.values()]
        axes.plot([min(ends), max(ends)], [y, y], color=hue, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=2)
    for name, megabytes in run.counts.items():
        shape = COUNT_MARKERS[counts.index(name) % len(COUNT_MARKERS)]
        # Above the point, and seen through: a count may differ by a few per cent.
        axes.plot(
            megabytes, y, shape, markersize=5.5, color="0.2", markerfacecolor="none", markeredgewidth=0.7, zorder=5
        )
    if math.isfinite(std):
        axes.errorbar(x, y, yerr=std, color=hue, linewidth=0.8, capsize=1.5, zorder=3)
    axes.plot(x, y, marker, markersize=4.5, color=hue, markeredgecolor="white", markeredgewidth=0.4, zorder=4)
    return x, y


def _bytes_axis(axes: Axes, runs: Sequence[Spending], paths: bool) -> None:
    """Set a logarithmic axis with room at its ends, whose ticks are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    found = [float(x) for run in runs for x in (*(run.path.x if paths else run.path.x[-1:]), *run.counts.values())]
    low, high = min(found) / 10**LEAST_DECADES, max(found) * 10**LEAST_DECADES
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    few = math.log10(high / low) < 2
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda megabytes, _: f"{megabytes:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mark(axes: Axes, marker: str) -> object:
    """Return what stands in the legend for all runs' marks of a shape."""
    fill = GREY if marker == MARKERS[0] else "white"
    (line,) = axes.plot([], [], marker, markersize=5, color="0.2", markerfacecolor=fill, markeredgewidth=0.7)
    return line


def _others(run: Spending, paths: bool) -> list[tuple[float, float]]:
    """Return what else of a run a name should not lie on: its other counts, the ends of its whisker, its path."""
    x, y, std = run.path.x[-1], run.path.mean[-1], run.path.std[-1]
    found = [(megabytes, y) for megabytes in run.counts.values()]
    found += [(x, y - std), (x, y + std)] if math.isfinite(std) else []
    return found + (list(zip(run.path.x, run.path.mean, strict=True)) if paths else [])
