"""The client-by-class chart: how many samples of which class each client holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import numpy as np

MOST_NUMBERED_CLIENTS = 20
MOST_NUMBERED_CLASSES = 30
MOST_NAMED_CLASSES = 50


def draw_partition_chart(table: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """Draw the samples per client and class as a heat map, with each client's total above it, and save it as PNG.

    Colours are logarithmic, so that a handful of samples still shows beside thousands; an empty cell is white. Small
    tables carry their numbers.

    Args:
        table: int array (clients, classes), as `label_table` returns it.
        class_names: One name per class.
        path: File to write; its folder is made if needed.

    Raises:
        FlgenError: If the file cannot be written.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    clients, classes = table.shape
    width = float(np.clip(2.5 + 0.5 * clients, 6.0, 16.0))
    height = float(np.clip(2.6 + 0.34 * classes, 4.0, 14.0))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 0.25 / width), height_ratios=(1.0, max(height - 2.2, 1.5)))
    cells = figure.add_subplot(grid[1, 0])
    totals = figure.add_subplot(grid[0, 0], sharex=cells)

    norm = LogNorm(vmin=1, vmax=max(int(table.max()), 2))
    picture = cells.imshow(np.ma.masked_equal(table.T, 0), cmap="viridis_r", norm=norm, aspect="auto")
    cells.set_xlabel("client")
    cells.set_ylabel("class")
    cells.xaxis.set_major_locator(MaxNLocator(nbins=25, integer=True))
    if clients <= MOST_NUMBERED_CLIENTS:
        cells.set_xticks(range(clients))
    if classes <= MOST_NAMED_CLASSES:
        cells.set_yticks(range(classes), class_names)
    cells.set_xticks(np.arange(clients + 1) - 0.5, minor=True)
    cells.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    cells.grid(which="minor", color="0.9", linewidth=0.6)
    cells.tick_params(which="minor", length=0)
    if clients <= MOST_NUMBERED_CLIENTS and classes <= MOST_NUMBERED_CLASSES:
        for client, label in np.argwhere(table):
            count = int(table[client, label])
            dark = float(norm(count)) > 0.5
            cells.text(
                client, label, f"{count:,}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
    figure.colorbar(picture, cax=figure.add_subplot(grid[1, 1]), label="samples")

    sizes = table.sum(axis=1)
    totals.bar(range(clients), sizes, width=0.8, color="0.55")
    totals.set_ylabel("total")
    totals.tick_params(labelbottom=False)
    totals.spines[["top", "right"]].set_visible(False)
    held = (table > 0).sum(axis=1)
    totals.set_title(
        f"{clients} client{'s' * (clients > 1)}, {int(sizes.sum()):,} samples\n"
        f"{_span(sizes)} samples and {_span(held)} classes per client",
        fontsize=10,
    )

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise FlgenError(f"the chart {path} cannot be written: {error.strerror}; give another path") from error


def _span(values: np.ndarray) -> str:
    least, most = int(values.min()), int(values.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
