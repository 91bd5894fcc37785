"""What the figures for papers share: widths, type sizes, colours, and saving as PNG and SVG."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import atomic_replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

COLUMN_WIDTH = 3.4  # inches
PAGE_WIDTH = 7.0
PNG_DPI = 300

# From the palettes of Okabe and Ito and of Tol: told apart with any colour vision, in a dark and a light shade each.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333", "#882255")
DASHES = ("-", "--", ":", "-.")
GREY = "0.72"
MOST_MARKED_POINTS = 25  # of a curve
LONGEST_IN_TWO_COLUMNS = 20  # characters of a name in a legend

_STYLE: dict[Any, Any] = {
    "font.size": 7.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "figure.titlesize": 8.0,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7.0,
    "svg.fonttype": "none",  # text stays text: searchable, and set in the fonts of the document
    "svg.hashsalt": "flgen",  # the same figure is the same file
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw and save within this: type of 7 and 8 points, thin lines."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def hue_and_dashes(number: int) -> tuple[str, str]:
    """Return the colour and the dashes of the curve of this number, from 0: first all hues, then all with dashes."""
    return HUES[number % len(HUES)], DASHES[number // len(HUES) % len(DASHES)]


def legend_columns(labels: Sequence[str]) -> int:
    """Return how many columns a legend below axes one column of a paper wide has: two where the names are short."""
    return 2 if len(labels) > 1 and max(map(len, labels)) <= LONGEST_IN_TWO_COLUMNS else 1


def legend_height(labels: Sequence[str]) -> float:
    """Return how much higher the figure is for a legend below its axes, in inches."""
    return 0.15 * -(-len(labels) // legend_columns(labels))


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], **options: Any) -> Legend:
    """Name curves below the axes, where the legend hides nothing.

    Args:
        figure: One column of a paper wide, `legend_height` of it for this.
        handles: What was drawn, one per name.
        labels: The names; they are shown as they are, whatever they begin with or hold.
        options: Further ones of `Figure.legend`.
    """
    legend = figure.legend(
        handles,
        [str(number) for number in range(len(labels))],
        loc="outside lower center",
        ncols=legend_columns(labels),
        frameon=False,
        **options,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        # Set afterwards and plainly: a name may begin with an underscore or hold dollar signs.
        text.set_parse_math(False)
        text.set_text(label)
    return legend


def figure_files(output: str | Path) -> tuple[Path, Path]:
    """Return the PNG and the SVG that an `--output` means; its ending may be either's, or missing.

    Raises:
        UsageError: It has another ending.
    """
    path = Path(output)
    if path.suffix.lower() not in ("", ".png", ".svg") or not path.name:
        raise UsageError(f"--output {output}: a figure is saved as PNG and SVG; give a name such as figure.png")
    return path.with_suffix(".png"), path.with_suffix(".svg")


def save_figure(figure: Figure, output: str | Path) -> tuple[Path, Path]:
    """Save a figure as PNG and SVG; the folder is made, and a file takes its name only when it is whole.

    Args:
        figure: What was drawn within `paper_style`.
        output: As for `figure_files`.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` has another ending than those of the two.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    png, svg = figure_files(output)
    make_folder(png.parent)
    with writing(png) as temporary:
        figure.savefig(temporary, format="png", dpi=PNG_DPI)
    with writing(svg) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    return png, svg


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of an output if the block succeeds.

    Raises:
        FlgenError: It cannot be written.
    """
    try:
        with atomic_replace(path) as temporary:
            yield temporary
    except FlgenError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise FlgenError(f"{path} cannot be written ({reason}): choose another --output") from error


def make_folder(folder: Path) -> None:
    """Make the folder of an output if it is missing.

    Raises:
        FlgenError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlgenError(f"{folder} cannot be made ({error.strerror}): choose another --output") from error
    if not os.access(folder, os.W_OK):
        raise FlgenError(f"{folder} cannot be written to: choose another --output")
