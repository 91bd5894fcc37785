"""What the figures for papers share: widths, type sizes, colours, and saving as PNG and SVG."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import atomic_replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN_WIDTH = 3.4  # inches
PAGE_WIDTH = 7.0
PNG_DPI = 300

# From the palettes of Okabe and Ito and of Tol: told apart with any colour vision, in a dark and a light shade each.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333", "#882255")
GREY = "0.72"

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
