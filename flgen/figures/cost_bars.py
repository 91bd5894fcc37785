"""What a round of several runs sends up and down, as bars beside the formula (fedktl.md, section 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flgen.figures.comparison_bars import short_label
from flgen.figures.paper import COLUMN_WIDTH, HUES, paper_style, save_figure

THICKNESS = 0.38  # of a bar, of the distance between two runs
EMPTY_DECADES = 0.3  # left of the smallest bar and right of the largest


class Bar(NamedTuple):
    """What a run sends one way in a round.

    Args:
        megabytes: Of all clients, 10^6 bytes.
        formula: Those of the formula's numbers in float32; None if there is none.
    """

    megabytes: float
    formula: float | None


def draw_cost_bars(labels: Sequence[str], ways: Mapping[str, Sequence[Bar]], output: str | Path) -> tuple[Path, Path]:
    """Draw a bar per run and way on a logarithmic axis, with a diamond where the formula is.

    Args:
        labels: The runs' names, from above.
        ways: By the name of the way, "up" and "down", a bar per run; nothing sent is no bar.
        output: The PNG; an SVG of the same name is saved beside it.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    from matplotlib.figure import Figure

    sizes = [size for bars in ways.values() for bar in bars for size in bar if size]
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.75 + 0.3 * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        drawn: list[Any] = []
        marks: list[tuple[float, float]] = []
        for place, (colour, bars) in enumerate(zip(HUES, ways.values(), strict=False)):
            heights = [row + (place - (len(ways) - 1) / 2) * THICKNESS for row in range(len(labels))]
            drawn.append(axes.barh(heights, [bar.megabytes for bar in bars], THICKNESS, color=colour, zorder=2))
            marks += [(bar.formula, y) for bar, y in zip(bars, heights, strict=True) if bar.formula]
        if marks:
            x, y = zip(*marks, strict=True)
            drawn += axes.plot(x, y, "D", markersize=3, color="0.2", markerfacecolor="white", zorder=3)
        if sizes:
            axes.set_xscale("log")
            axes.set_xlim(min(sizes) / 10**EMPTY_DECADES, max(sizes) * 10**EMPTY_DECADES)
        axes.set_yticks(range(len(labels)), [short_label(label) for label in labels], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
        axes.set_xlabel("MB a round, all clients")
        axes.grid(axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        names = [*ways, "formula"][: len(drawn)]
        figure.legend(drawn, names, loc="outside upper right", ncols=len(names), frameon=False)
        return save_figure(figure, output)
