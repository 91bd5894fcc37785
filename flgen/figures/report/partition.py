"""How many samples of each class each client holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.figures.report.plots import Plot, new_figure, plain
from flgen.figures.report.runs import ReportedExperiment, all_runs
from flgen.figures.report.section import Section

if TYPE_CHECKING:
    import numpy as np
    from plotly import graph_objects
else:
    np = deferred_module("numpy")
    graph_objects = deferred_module("plotly.graph_objects")

MOST_NUMBERED_CLIENTS = 12
MOST_NUMBERED_CLASSES = 20
CLASS_HEIGHT = 24, 6  # pixels of a row, at most and at least
MARGINS = 90  # pixels above and below the rows
COLOURS = ("#c7dff2", "#5b9fd4", "#1f5f99", "#0b2c4d")  # few samples to many


class Division(NamedTuple):
    """A division of samples among clients.

    Args:
        labels: The runs that have it.
        plot: Its chart.
        facts: One line.
    """

    labels: str
    plot: Plot
    facts: str


def partition(experiments: Sequence[ReportedExperiment]) -> Section | None:
    """Return the section with the client-by-class chart, once for all runs whose samples are divided alike."""
    tables: list[tuple[list[str], np.ndarray]] = []
    labels: list[list[str]] = []
    for run in all_runs(experiments):
        if run.partition is None or not run.partition[1].size:
            continue
        names, table = run.partition
        for place, (other, counts) in enumerate(tables):
            if other == names and np.array_equal(counts, table):
                labels[place].append(run.label)
                break
        else:
            tables.append((names, table))
            labels.append([run.label])
    if not tables:
        return None
    everywhere = len(tables) == 1
    divisions = [
        Division("" if everywhere else ", ".join(who), _chart(names, table), describe(table))
        for who, (names, table) in zip(labels, tables, strict=True)
    ]
    return Section("partition", "Clients and classes", "partition.html", {"divisions": divisions})


def describe(table: np.ndarray) -> str:
    """Return one line about a table of samples, int64 (clients, classes)."""
    sizes, held = table.sum(axis=1), (table > 0).sum(axis=1)
    return (
        f"{len(table):,} client{'s' * (len(table) != 1)}, {int(sizes.sum()):,} samples; {_span(sizes)} samples and "
        f"{_span(held)} classes per client"
    )


def _chart(names: Sequence[str], table: np.ndarray) -> Plot:
    clients, classes = table.shape
    counts = table.T
    numbered = clients <= MOST_NUMBERED_CLIENTS and classes <= MOST_NUMBERED_CLASSES
    with np.errstate(divide="ignore", invalid="ignore"):
        shade = np.where(counts > 0, np.log10(counts), np.nan).astype(np.float32)
    most = max(int(table.max()), 2)
    ticks = [count for power in range(19) for count in (10**power, 3 * 10**power) if count <= most]
    figure = new_figure("client", "class", hovermode="closest")
    figure.add_trace(
        graph_objects.Heatmap(
            z=shade,
            zmin=0,
            zmax=float(np.log10(most)),
            text=[[f"{count:,}" if count else "" for count in row] for row in counts.tolist()],
            colorscale=list(COLOURS),
            xgap=1 if clients <= 100 else 0,
            ygap=1 if classes <= 50 else 0,
            texttemplate="%{text}" if numbered else None,
            textfont={"size": 10},
            hoverongaps=False,
            hovertemplate="client %{x}, class %{y}: %{text} samples<extra></extra>",
            colorbar={"title": {"text": "samples"}, "tickvals": np.log10(ticks), "ticktext": [f"{n:,}" for n in ticks]}
            | {"thickness": 12, "outlinewidth": 0},
        )
    )
    shown = range(0, classes, -(-classes // 60))
    figure.update_yaxes(
        tickvals=list(shown), ticktext=[plain(names[place]) for place in shown], showgrid=False, autorange="reversed"
    )
    figure.update_xaxes(showgrid=False, rangemode="tozero", dtick=1 if clients <= MOST_NUMBERED_CLIENTS else None)
    row = float(np.clip(480 / classes, CLASS_HEIGHT[1], CLASS_HEIGHT[0]))
    return Plot("", f"Samples per client and class: {describe(table)}", figure, height=int(MARGINS + row * classes))


def _span(values: np.ndarray) -> str:
    least, most = int(values.min()), int(values.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
