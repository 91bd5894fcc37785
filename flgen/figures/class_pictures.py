"""What clients were sent of each class, round by round (FedKTL: fedktl.md, section 1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flgen.deferred import TYPE_CHECKING
from flgen.figures.paper import COLUMN_WIDTH, PAGE_WIDTH, paper_style, save_figure

if TYPE_CHECKING:
    import numpy as np

CELL = 0.42  # inches at most
GAP = 0.06  # of a cell, between pictures
SHORT_NAME = 3  # characters that fit above a cell
LONGEST_NAME = 16
MARGINS = 0.75, 0.35  # inches beside and above the cells


def draw_class_pictures(
    rows: Mapping[int, Mapping[int, np.ndarray]],
    names: Mapping[int, str],
    output: str | Path,
    *,
    note: str = "",
) -> tuple[Path, Path]:
    """Draw a table of pictures: a row per round, from above, and a column per class.

    Args:
        rows: By round, pictures by class, uint8 (height, width, 3); a class without one has an empty cell.
        names: Of the classes to draw, by class, in the order of the columns.
        output: The PNG; an SVG of the same name is saved beside it.
        note: What stands below the table.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    beside, above = MARGINS
    cell = min(CELL, (PAGE_WIDTH - beside) / len(names))
    titles = [_short(name) for name in names.values()]
    longest = max(map(len, titles))
    slanted = longest > SHORT_NAME
    size = max(COLUMN_WIDTH, beside + cell * len(names)), above + cell * len(rows) + 0.05 * longest * slanted
    with paper_style():
        figure = Figure(figsize=(size[0], size[1] + (0.2 if note else 0.0)), layout="constrained")
        axes = figure.add_subplot()
        for y, pictures in enumerate(rows.values()):
            for x, label in enumerate(names):
                left, bottom, side = x - 0.5 + GAP / 2, y - 0.5 + GAP / 2, 1 - GAP
                if label in pictures:
                    place = (left, left + side, bottom + side, bottom)
                    axes.imshow(pictures[label], extent=place, interpolation="nearest", vmin=0, vmax=255)
                else:
                    axes.add_patch(Rectangle((left, bottom), side, side, fill=False, edgecolor="0.85", linewidth=0.5))
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first round on top
        axes.set_aspect("equal")
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(names)), titles, parse_math=False)
        if slanted:
            for text in axes.get_xticklabels():
                text.set(rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), [str(t) for t in rows])
        axes.set_ylabel("after round")
        axes.set_xlabel(note)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return save_figure(figure, output)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
