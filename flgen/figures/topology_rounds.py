"""Who reads from whom, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flgen.deferred import TYPE_CHECKING
from flgen.figures.paper import COLUMN_WIDTH, GREY, HUES, PAGE_WIDTH, paper_style, save_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

ROUNDS_PER_ROW = 3
MOST_NUMBERED_NODES = 30
CROWD = 100  # edges beyond which they are drawn thin and transparent


def draw_topology_rounds(
    graphs: Mapping[int, Sequence[tuple[int, ...]]],
    facts: Mapping[int, Mapping[str, float]],
    output: str | Path,
    title: str = "",
) -> tuple[Path, Path]:
    """Draw each round's graph on a circle; an arrow points from the client that is read to the one that reads.

    Clients without any edge are grey. Under each graph stand its facts.

    Args:
        graphs: By round, whom each client reads from.
        facts: By round, what `flgen.topology.graph_facts` says of the graph.
        output: The PNG; an SVG of the same name is saved beside it.
        title: What stands above all.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    from matplotlib.figure import Figure

    columns = min(len(graphs), ROUNDS_PER_ROW)
    rows = -(-len(graphs) // columns)
    width = COLUMN_WIDTH if columns == 1 else PAGE_WIDTH * columns / ROUNDS_PER_ROW
    panel = width / columns
    with paper_style():
        figure = Figure(figsize=(width, rows * (panel + 0.6) + (0.2 if title else 0.0)), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08)  # type: ignore[union-attr, call-arg]
        if title:
            figure.suptitle(title, parse_math=False)
        for place, (t, sources) in enumerate(graphs.items(), start=1):
            axes = figure.add_subplot(rows, columns, place)
            _draw_graph(axes, sources, panel)
            axes.set_title(f"round {t}")
            axes.set_xlabel(describe_graph(facts[t]), fontsize=7)
        return save_figure(figure, output)


def describe_graph(facts: Mapping[str, float]) -> str:
    """Return the facts of a graph as three lines that fit under a panel."""
    edges, readers = int(facts["graph/edges"]), int(facts["graph/out_degree_max"])
    sources = f"{facts['graph/in_degree_mean']:.1f}".removesuffix(".0")
    reach = f"diameter {int(facts['graph/diameter'])}" if "graph/diameter" in facts else "not connected"
    return "\n".join(
        (
            f"{_count(edges, 'edge')}, {sources} source{'s' * (sources != '1')} on average",
            f"at most {_count(readers, 'reader')}, {reach}",
            f"spectral gap {facts['graph/spectral_gap']:.2f}",
        )
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _draw_graph(axes: Axes, sources: Sequence[tuple[int, ...]], panel: float) -> None:
    import numpy as np

    count = len(sources)
    angles = np.pi / 2 - 2 * np.pi * np.arange(count) / count  # node 0 above, then clockwise
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    numbered = count <= MOST_NUMBERED_NODES
    points = 72 * panel / 2.4  # per unit of the axes, about
    diameter = 12.0 if numbered else float(np.clip(2 * np.pi * points / count * 0.6, 2.0, 8.0))
    edges = np.array([(j, k) for k, row in enumerate(sources) for j in row], dtype=int).reshape(-1, 2)
    if len(edges):
        _draw_edges(axes, places[edges[:, 0]], places[edges[:, 1]], gap=0.5 * diameter / points)
    busy = np.isin(np.arange(count), edges)
    for chosen, colour in ((busy, HUES[0]), (~busy, GREY)):
        axes.scatter(places[chosen, 0], places[chosen, 1], s=diameter**2, color=colour, linewidths=0, zorder=3)
    if numbered:
        for k, (x, y) in enumerate(places):
            axes.text(x, y, str(k), ha="center", va="center_baseline", color="white" if busy[k] else "black", zorder=4)
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_edges(axes: Axes, tails: np.ndarray, heads: np.ndarray, gap: float) -> None:
    """Draw all arrows as one collection, which for the thousands of a full graph takes no time."""
    import numpy as np

    along = heads - tails
    lengths = np.linalg.norm(along, axis=1, keepdims=True)
    start = tails + along / lengths * np.minimum(gap, lengths / 4)
    step = along * (1 - 2 * np.minimum(gap / lengths, 0.25))
    crowded = len(tails) > CROWD
    axes.quiver(
        *start.T,
        *step.T,
        angles="xy",
        scale_units="xy",
        scale=1,
        units="inches",
        width=0.004 if crowded else 0.007,
        headwidth=7,
        headlength=8,
        headaxislength=7,
        color="0.25",
        alpha=max(0.08, (CROWD / len(tails)) ** 0.5) if crowded else 1.0,
        zorder=2,
    )
