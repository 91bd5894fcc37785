"""How clients differ: each metric of clients.csv as a distribution, over rounds and after the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.figures.report import words
from flgen.figures.report.curves import importance
from flgen.figures.report.plots import Plot, faint, hue, new_figure, plain, thinned
from flgen.figures.report.runs import ReportedExperiment, Rows
from flgen.figures.report.section import Section

if TYPE_CHECKING:
    import numpy as np
    from plotly import graph_objects
else:
    np = deferred_module("numpy")
    graph_objects = deferred_module("plotly.graph_objects")

LEVELS = (0, 10, 25, 50, 75, 90, 100)  # percentiles: the edges of the bands and the median between them
BINS = 20
TICKS = 5
MOST_HISTOGRAMS = 4
OPEN_PLOTS = 6
ROOM = 120_000  # numbers of all bands together
MOST_METRICS = 24


class Choice(NamedTuple):
    """One metric to look at.

    Args:
        metric: Its name.
        over_rounds: One plot per experiment.
        last: Clients by value, after each experiment's last measurement.
    """

    metric: str
    over_rounds: list[Plot]
    last: Plot


def clients(experiments: Sequence[ReportedExperiment]) -> Section | None:
    """Return the section on single clients; None if no run has measured any."""
    tables = [(experiment, _measured(experiment)) for experiment in experiments]
    tables = [(experiment, found) for experiment, found in tables if found]
    names = sorted({name for _, found in tables for name in found}, key=_rank)[:MOST_METRICS]
    if not names:
        return None
    most = max(20, ROOM // (len(LEVELS) * len(names) * len(tables)))
    choices = []
    for name in names:
        having = [(experiment, found[name]) for experiment, found in tables if name in found]
        bands = [_bands(name, experiment, values, most) for experiment, values in having]
        _share_axis(bands, [values for _, values in having])
        choices.append(Choice(name, bands, _last(name, having)))
    seeds = any(len(experiment.runs) > 1 for experiment in experiments)
    content = {"choices": choices, "experiments": experiments, "seeds": seeds, "open_plots": OPEN_PLOTS}
    return Section("clients", "Client by client", "clients.html", content)


Values = dict[int, "np.ndarray"]


def _measured(experiment: ReportedExperiment) -> dict[str, Values]:
    """Return, by metric and round, what the clients of an experiment measured, all seeds together; one client is no
    distribution.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for run in experiment.runs:
        _collect(run.clients, found)
    return {
        name: {t: np.asarray(values, dtype=np.float64) for t, values in sorted(rounds.items())}
        for name, rounds in found.items()
        if max(map(len, rounds.values())) > 1
    }


def _collect(rows: Rows, found: dict[str, dict[int, list[float]]]) -> None:
    for row in rows:
        for name, value in row.items():
            if name not in ("round", "client") and np.isfinite(value):
                found.setdefault(name, {}).setdefault(row["round"], []).append(value)


def _rank(metric: str) -> tuple[object, ...]:
    return not metric.startswith("test/"), not metric.endswith("_trained"), *importance(metric)


def _bands(metric: str, experiment: ReportedExperiment, values: Values, most: int) -> Plot:
    levels = np.array([np.percentile(one, LEVELS) for one in values.values()])  # (rounds, levels)
    points = thinned(levels[:, len(LEVELS) // 2], most)
    rounds = np.array(list(values), dtype=np.int32)[points]
    levels = levels[points].astype(np.float32)
    colour = hue(experiment.number)
    figure = new_figure(experiment.runs[0].unit, hovermode="x unified")
    half = len(LEVELS) // 2
    for place in range(half):
        low, high = LEVELS[place], LEVELS[-1 - place]
        name = "all clients" if low == 0 else f"{high - low} % of clients"
        edge = {"x": rounds, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        figure.add_trace(graph_objects.Scatter(y=levels[:, -1 - place], showlegend=False, **edge))
        figure.add_trace(
            graph_objects.Scatter(
                y=levels[:, place], fill="tonexty", fillcolor=faint(colour, (0.12, 0.2, 0.3)[place]), name=name, **edge
            )
        )
    for place, level in enumerate(LEVELS):
        name = {0: "smallest", 50: "median", 100: "largest"}.get(level, f"{level} % below")
        is_median = place == half
        figure.add_trace(
            graph_objects.Scatter(
                x=rounds,
                y=levels[:, place],
                name=name,
                mode="lines+markers" if is_median and len(rounds) < 40 else "lines",
                line={"color": colour, "width": 2 if is_median else 0},
                marker={"size": 5},
                showlegend=is_median,
                hovertemplate="%{y:.4~g}",
            )
        )
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.24, "x": 0}, margin={"b": 60})
    last = values[max(values)]
    said = f"after round {max(values)} median {np.median(last):.4g}, {last.min():.4g} to {last.max():.4g}"
    return Plot(experiment.label, f"{metric} of the clients of {experiment.label}: {said}", figure, 320, note=said)


def _share_axis(plots: Sequence[Plot], values: Sequence[Values]) -> None:
    """Give the plots that stand beside each other one scale."""
    if len(plots) > 1:
        least = min(one.min() for found in values for one in found.values())
        most = max(one.max() for found in values for one in found.values())
        room = 0.04 * (most - least) or 0.5
        for plot in plots:
            plot.figure.update_yaxes(range=[float(least - room), float(most + room)])


def _last(metric: str, having: Sequence[tuple[ReportedExperiment, Values]]) -> Plot:
    """Return the clients after the last round: a histogram, of many experiments a box each."""
    last = [(experiment, values[max(values)]) for experiment, values in having]
    figure = _histogram(metric, last) if len(last) <= MOST_HISTOGRAMS else _boxes(metric, last)
    said = "; ".join(
        f"{experiment.label}: {len(values)} clients, mean {values.mean():.4g}, lowest {values.min():.4g}, highest "
        f"{values.max():.4g}"
        for experiment, values in last
    )
    rounds = words.ranges(sorted({max(values) for _, values in having}))
    note = said if len(last) <= MOST_HISTOGRAMS else ""
    return Plot(f"clients after {rounds}", f"Clients by {metric} after {rounds}. {said}", figure, 320, note=note)


def _histogram(metric: str, last: Sequence[tuple[ReportedExperiment, np.ndarray]]) -> graph_objects.Figure:
    everything = np.concatenate([values for _, values in last])
    least, most = float(everything.min()), float(everything.max())
    limits = (0.0, 1.0) if _is_share(metric) and least >= 0 and most <= 1 else (least, most)
    edges = np.histogram_bin_edges(everything, bins=BINS, range=limits)
    figure = new_figure(metric, "clients", hovermode="closest", bargap=0.08)
    for experiment, values in last:
        figure.add_trace(
            graph_objects.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=np.histogram(values, bins=edges)[0],
                name=plain(experiment.label),
                meta=experiment.number,
                marker={"color": hue(experiment.number)},
                customdata=np.stack([edges[:-1], edges[1:]], axis=1),
                hovertemplate="%{y} clients with %{customdata[0]:.3g} to %{customdata[1]:.3g}",
            )
        )
    highest = max(int(np.histogram(values, bins=edges)[0].max()) for _, values in last)
    figure.update_yaxes(rangemode="tozero", tickformat=",d", dtick=max(1, round(highest / TICKS)))  # clients are whole
    return figure


def _boxes(metric: str, last: Sequence[tuple[ReportedExperiment, np.ndarray]]) -> graph_objects.Figure:
    figure = new_figure("", metric, hovermode="closest")
    for experiment, values in last:
        figure.add_trace(
            graph_objects.Box(
                y=values.astype(np.float32),
                name=plain(experiment.label),
                meta=experiment.number,
                marker={"color": hue(experiment.number), "size": 4},
                line={"width": 1.5},
            )
        )
    return figure


def _is_share(metric: str) -> bool:
    return any(word in metric for word in ("accuracy", "f1", "density", "fraction"))
