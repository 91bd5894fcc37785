"""Are the masks of clients with like labels alike? Three maps of clients by clients (dispfl.md, 10.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from flgen.deferred import TYPE_CHECKING
from flgen.figures.paper import PAGE_WIDTH, paper_style, save_figure

if TYPE_CHECKING:
    import numpy as np

TICKS = 4


def draw_mask_maps(
    cosine: np.ndarray,
    similarity: np.ndarray,
    distance: np.ndarray,
    output: str | Path,
    *,
    correlation: float,
    independent: float,
    clients: Sequence[int] | None = None,
) -> tuple[Path, Path]:
    """Draw the label cosine, the published scaling of mask distances, and the plain distance, two columns wide.

    Bright means alike in all three. The plain distance has its colours between the nearest and the farthest pair; a
    client's distance to itself, 0, is left blank.

    Args:
        cosine: Cosine of the clients' label counts, (K, K).
        similarity: S, distances scaled row by row, in [0, 1], (K, K).
        distance: D / d, the share of all weights in which two masks differ, (K, K).
        output: The PNG; an SVG of the same name is saved beside it.
        correlation: Spearman correlation between `cosine` and minus `distance`; nan if there is none.
        independent: Mean D / d of independent masks.
        clients: The clients' ids; 0 to K - 1 by default.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    import numpy as np
    from matplotlib.figure import Figure

    count = len(distance)
    ids = range(count) if clients is None else clients
    apart = np.ma.masked_array(distance, mask=np.eye(count, dtype=bool))
    maps = [
        ("(a) cosine of label counts", cosine, "viridis", (0.0, 1.0)),
        ("(b) mask similarity, scaled by row", similarity, "viridis", (0.0, 1.0)),
        ("(c) mask distance D/d", apart, "viridis_r", _range(float(apart.min()), float(apart.max()))),
    ]
    found = "no rank correlation" if math.isnan(correlation) else f"rank correlation {correlation:.2f}"
    found += " of label cosine and mask closeness"
    title = f"{found}, mean D/d {float(apart.mean()):.3f} (independent masks {independent:.3f})"
    with paper_style():
        figure = Figure(figsize=(PAGE_WIDTH, 2.35), layout="constrained")
        figure.suptitle(title)
        ticks = _ticks(count)
        for place, (name, values, colours, (low, high)) in enumerate(maps, start=1):
            axes = figure.add_subplot(1, 3, place)
            picture = axes.imshow(values, cmap=colours, vmin=low, vmax=high, origin="lower", interpolation="nearest")
            axes.set_title(name)
            axes.set_xlabel("Client ID")
            axes.set_ylabel("Client ID")
            axes.set_xticks(ticks, [str(ids[tick]) for tick in ticks])
            axes.set_yticks(ticks, [str(ids[tick]) for tick in ticks])
            bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
            bar.ax.locator_params(nbins=5)
            if colours.endswith("_r"):
                bar.ax.invert_yaxis()  # bright above, as beside the other two
        return save_figure(figure, output)


def _range(low: float, high: float) -> tuple[float, float]:
    """Return the range of colours; equal distances get one from 0."""
    return (low, high) if low < high else (0.0, high or 1.0)


def _ticks(count: int) -> list[int]:
    """Return positions from the first client to the last, such as 0, 5, 10, 15, 19."""
    step = -(-count // TICKS)
    return [place for place in range(0, count - 1, step) if 2 * (count - 1 - place) > step] + [count - 1]
