"""What several runs reached in the end, at best, and at a chosen round, as bars (gptfl.md, sections 7.1, 7.6, 7.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.figures.paper import COLUMN_WIDTH, HUES, paper_style, save_figure

if TYPE_CHECKING:
    import numpy as np

LONGEST_LABEL = 32  # characters
THICKNESS = 0.68  # of all bars of a run, of the distance between two runs


@dataclass(frozen=True)
class Bars:
    """One reading of every run.

    Args:
        name: What it is called in the legend.
        mean: Mean over seeds, float (runs,); NaN has no bar.
        std: Sample standard deviation, float (runs,); NaN has no whisker.
        colour: Of the bars.
    """

    name: str
    mean: np.ndarray
    std: np.ndarray
    colour: str


FINAL, CHOSEN, BEST = HUES[0], HUES[2], "#9FC9E3"
"""Colours of what the last round, a round chosen on validation samples, and the best round gave."""


def draw_comparison(
    labels: Sequence[str], readings: Sequence[Bars], output: str | Path, *, xlabel: str, numbers: Sequence[str]
) -> tuple[Path, Path]:
    """Draw a bar per run and reading, with whiskers of one standard deviation over seeds.

    Args:
        labels: The runs' names, from above.
        readings: What is drawn of each run, from above.
        output: The PNG; an SVG of the same name is saved beside it.
        xlabel: What was measured.
        numbers: One text per run, beside its bars.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows = np.arange(len(labels))
    thickness = THICKNESS / len(readings)
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.75 + 0.18 * len(readings) * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        bars: list[Any] = []
        for place, reading in enumerate(readings):
            heights = rows + (place - (len(readings) - 1) / 2) * thickness
            whiskers = np.where(np.isfinite(reading.std), reading.std, 0.0)
            lengths = np.where(np.isfinite(reading.mean), reading.mean, 0.0)
            bars.append(axes.barh(heights, lengths, thickness, color=reading.colour, zorder=2))
            for row, value, whisker in zip(heights, reading.mean, whiskers, strict=True):
                if whisker > 0 and math.isfinite(value):
                    axes.errorbar(value, row, xerr=whisker, color="0.2", linewidth=0.8, capsize=1.5, zorder=3)
        means = np.nan_to_num(np.array([reading.mean for reading in readings]), posinf=0.0, neginf=0.0)
        spreads = np.nan_to_num(np.array([reading.std for reading in readings]))
        ends = means.max(axis=0) + spreads.max(axis=0)
        # Beside the bar that it belongs to, the first of each group.
        first = -(len(readings) - 1) / 2 * thickness
        for row, (number, end) in enumerate(zip(numbers, means[0] + spreads[0], strict=True)):
            axes.annotate(
                number,
                (max(float(end), 0.0), row + first),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6,
            )
        axes.set_yticks(rows, [short_label(label) for label in labels], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
        room = 1.35 * float(ends.max()) if ends.max() > 0 else 1.0  # for the numbers
        axes.set_xlim(min(0.0, float(means.min())), room)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        names = [reading.name for reading in readings]
        narrow = {"columnspacing": 1.0, "handlelength": 1.2} if len(names) > 2 else {}
        figure.legend(bars, names, loc="outside upper right", ncols=len(names), frameon=False, **narrow)
        return save_figure(figure, output)


def short_label(label: str) -> str:
    """Return a run's name as it stands beside its bars."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
