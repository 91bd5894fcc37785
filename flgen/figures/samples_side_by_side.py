"""The sample grids of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError
from flgen.figures.comparison_bars import short_label
from flgen.figures.paper import COLUMN_WIDTH, PAGE_WIDTH, PNG_DPI, paper_style, save_figure

if TYPE_CHECKING:
    from PIL import Image

RUNS_PER_ROW = 3
GAP = 0.1  # inches between grids
ABOVE, BELOW = 0.2, 0.2  # inches for the name and for the note


@dataclass(frozen=True)
class SampleSheet:
    """The samples of one run.

    Args:
        label: The run's name.
        path: Its grid, a PNG.
        note: What stands below it.
    """

    label: str
    path: Path
    note: str = ""


def draw_samples_side_by_side(sheets: Sequence[SampleSheet], output: str | Path) -> tuple[Path, Path]:
    """Draw grids of samples, at most three in a row, each with its run's name above and a note below.

    Args:
        sheets: At least one; a grid fills the width or the height of its square.
        output: The PNG; an SVG of the same name is saved beside it.

    Returns:
        The two files.

    Raises:
        FlgenError: A grid cannot be read, or the figure cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    from matplotlib.figure import Figure

    columns = min(len(sheets), RUNS_PER_ROW)
    rows = -(-len(sheets) // columns)
    width = COLUMN_WIDTH if columns == 1 else PAGE_WIDTH * columns / RUNS_PER_ROW
    side = width / columns - GAP
    height = rows * (ABOVE + side + BELOW)
    with paper_style():
        figure = Figure(figsize=(width, height))
        for place, sheet in enumerate(sheets):
            row, column = divmod(place, columns)
            left, bottom = GAP / 2 + column * (side + GAP), height - (row + 1) * (ABOVE + side + BELOW) + BELOW
            axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
            # At the resolution of print: the SVG then holds the pixels that the PNG has.
            picture = _fitted(read_sheet(sheet.path), round(side * PNG_DPI))
            axes.imshow(picture, interpolation="none", vmin=0, vmax=255)
            axes.set_title(short_label(sheet.label), pad=3, parse_math=False)
            axes.set_xlabel(sheet.note, labelpad=3, fontsize=7, parse_math=False)
            axes.set(xticks=[], yticks=[], anchor="N")
            axes.spines[:].set_visible(False)
        return save_figure(figure, output)


def read_sheet(path: Path) -> Image.Image:
    """Return a grid of samples, RGB.

    Raises:
        FlgenError: The file is damaged or missing.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise FlgenError(f"{path} cannot be read ({reason}): remove it, an older round is then shown") from error


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture whose longer side has so many pixels."""
    from PIL import Image

    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
