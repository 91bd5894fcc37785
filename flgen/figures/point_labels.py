"""Names beside points that cover neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence

from flgen.deferred import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

SIZE = 6.0  # points, of the letters
MARK = 3.0  # points from the centre of a mark to its edge, about
PADDING = 2.0  # points around a name: letters are a little wider in print than on the screen
DARKER = 0.75
GAPS = (0.0, 4.0, 10.0, 16.0, 24.0, 34.0, 46.0, 60.0, 76.0, 94.0, 114.0)
"""Points between a mark and its name, the nearest first; beyond that a line ties the two."""
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Where a name may stand: right, left, above, below, and at the corners, in order of preference."""


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Write a name beside each point, at the nearest free place inside the axes.

    Names take their places in turn. One that finds none free, in axes that are full, takes the one where it covers
    least.

    Args:
        axes: Where; limits, scales and legends are final.
        points: (x, y) of the data.
        labels: One per point; shown as they are.
        colours: Of the names, one per point; they are written a shade darker.
        others: What else names keep off, (x, y) of the data.
    """
    import numpy as np
    from matplotlib.colors import to_rgb

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays out the axes: only then is known where the points are
    pixels = figure.dpi / 72
    places = axes.transData.transform(np.array([*points, *others], dtype=np.float64)) / pixels
    inside = np.array(axes.get_window_extent().extents) / pixels
    taken = [np.concatenate([place - MARK, place + MARK]) for place in places]
    for point, place, label, colour in zip(points, places[: len(points)], labels, colours, strict=True):
        size = _size(axes, label) / pixels + 2 * PADDING
        choices = [(gap, _beside(place, size, side, gap)) for gap in GAPS for side in SIDES]
        gap, box = min(choices, key=lambda choice: _covered(choice[1], taken, inside))  # the first of equals
        taken.append(box)
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.4, "shrinkA": 0, "shrinkB": MARK}
        axes.annotate(
            label,
            point,
            xytext=tuple(box[:2] + PADDING - place),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=SIZE,
            color=tuple(DARKER * part for part in to_rgb(colour)),
            parse_math=False,
            arrowprops=line if gap else None,
            zorder=5,
        ).set_in_layout(False)


def _size(axes: Axes, label: str) -> np.ndarray:
    """Return width and height of a name in pixels."""
    import numpy as np

    text = axes.text(0, 0, label, fontsize=SIZE, va="bottom", parse_math=False)
    extent = text.get_window_extent()
    text.remove()
    return np.array([extent.width, extent.height])


def _beside(place: np.ndarray, size: np.ndarray, side: tuple[int, int], gap: float) -> np.ndarray:
    """Return the box (left, bottom, right, top) of a name on a side of a point."""
    import numpy as np

    towards = np.array(side)
    centre = place + towards * (MARK + gap + size / 2)
    return np.concatenate([centre - size / 2, centre + size / 2])


def _covered(box: np.ndarray, taken: Sequence[np.ndarray], inside: np.ndarray) -> float:
    """Return the area of a box that lies on others or outside the axes."""
    import numpy as np

    boxes = np.stack([*taken, inside])
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    areas = np.clip(width, 0, None) * np.clip(height, 0, None)
    own = (box[2] - box[0]) * (box[3] - box[1])
    outside = own - float(areas[-1])
    return float(areas[:-1].sum()) + (outside if outside > 1e-6 * own else 0.0)
