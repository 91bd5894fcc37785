"""What several runs reached in the end, and at best, as bars (gptfl.md, sections 7.1, 7.6 and 7.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.figures.paper import COLUMN_WIDTH, HUES, paper_style, save_figure

if TYPE_CHECKING:
    import numpy as np

LONGEST_LABEL = 32  # characters
BAR = 0.34  # of the distance between two runs


def draw_comparison(
    labels: Sequence[str],
    final: np.ndarray,
    final_std: np.ndarray,
    best: np.ndarray,
    best_std: np.ndarray,
    output: str | Path,
    *,
    xlabel: str,
    numbers: Sequence[str],
) -> tuple[Path, Path]:
    """Draw two bars per run, dark for the final round and light for the best, with whiskers of one std over seeds.

    Args:
        labels: The runs' names, from above.
        final: Mean over seeds of the value at the last evaluated round, float (runs,).
        final_std: Its sample standard deviation, float (runs,); NaN of one seed, which has no whisker.
        best: Mean over seeds of the value at each seed's best round, float (runs,).
        best_std: Its sample standard deviation, float (runs,).
        output: The PNG; an SVG of the same name is saved beside it.
        xlabel: What was measured.
        numbers: The final values as text, one per run; they stand beside the bars.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows = np.arange(len(labels))
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.75 + 0.36 * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        bars: list[Any] = []
        for values, deviations, side, colour in (
            (final, final_std, -0.5, HUES[0]),
            (best, best_std, 0.5, "#9FC9E3"),
        ):
            whiskers = np.where(np.isfinite(deviations), deviations, 0.0)
            drawn = axes.barh(
                rows + side * BAR, np.where(np.isfinite(values), values, 0.0), BAR, color=colour, zorder=2
            )
            bars.append(drawn)
            for row, value, whisker in zip(rows + side * BAR, values, whiskers, strict=True):
                if whisker > 0 and math.isfinite(value):
                    axes.errorbar(value, row, xerr=whisker, color="0.2", linewidth=0.8, capsize=1.5, zorder=3)
        ends = np.nan_to_num(np.maximum(final, best), posinf=0.0, neginf=0.0)
        ends = ends + np.nan_to_num(np.fmax(final_std, best_std))
        for row, (number, end) in enumerate(zip(numbers, ends, strict=True)):
            axes.annotate(
                number,
                (max(float(end), 0.0), row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6,
            )
        axes.set_yticks(rows, [_short(label) for label in labels], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
        lowest = min(0.0, float(np.nanmin([*final, *best, 0.0])))
        axes.set_xlim(lowest, 1.35 * float(ends.max()) if ends.max() > 0 else 1.0)  # room for the numbers
        axes.set_xlabel(xlabel)
        axes.grid(axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(bars, ["final round", "best round"], loc="outside upper right", ncols=2, frameon=False)
        return save_figure(figure, output)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
