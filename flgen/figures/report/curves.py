"""Curves of every metric, in groups by the part before the slash, the most important first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from flgen.figures.report import words
from flgen.figures.report.plots import MOST_POINTS, Plot, add_curve, new_figure
from flgen.figures.report.runs import ReportedExperiment, all_runs
from flgen.figures.report.section import Section
from flgen.metrics.over_rounds import falls, headline

GROUPS = ("test", "val", "fid", "kid", "prdc", "train", "alignment", "privacy", "mask", "comm", "graph")
LAST_GROUPS = ("flops", "time")
SPREADS = ("std", "worst_decile", "pooled")
HIGHLIGHTS = 6
OPEN_PLOTS = 6
ROOM = 400_000  # points of all curves together: 5 MB

Course = tuple[list[int], list[float], tuple[list[float], list[float]] | None]


class Group(NamedTuple):
    """Metrics that are looked at together.

    Args:
        name: The part before the slash.
        plots: Of the metrics that change, the most important first.
        constant: The others: name, and value in each experiment.
    """

    name: str
    plots: list[Plot]
    constant: list[tuple[str, str]]


class Row(NamedTuple):
    """A row of the table of numbers.

    Args:
        metric: Which.
        values: One per experiment: the last one, and the round it is of.
    """

    metric: str
    values: tuple[str, ...]


def curves(experiments: Sequence[ReportedExperiment]) -> Section | None:
    """Return the section on metrics over rounds; None if no run has any."""
    names = list(dict.fromkeys(name for run in all_runs(experiments) for name in run.columns))
    if not names:
        return None
    courses = {name: [_course(experiment, name) for experiment in experiments] for name in names}
    drawn = sum(course is not None for row in courses.values() for course in row)
    most = max(24, min(MOST_POINTS, ROOM // (2 * drawn)))
    unit = experiments[0].runs[0].unit

    def plot(name: str) -> Plot:
        return _plot(name, experiments, courses[name], unit, most)

    changing = {name for name in names if not _is_constant(courses[name])}
    groups = []
    for group in sorted({name.partition("/")[0] for name in names}, key=_group_rank):
        members = sorted((name for name in names if name.partition("/")[0] == group), key=importance)
        constant = [(name, _constant_text(courses[name])) for name in members if name not in changing]
        groups.append(Group(group, [plot(name) for name in members if name in changing], constant))
    highlights = [plot(name) for name in _highlights(experiments, names, changing)]
    if len(groups) > 1 and highlights:
        groups.insert(0, Group("highlights", highlights, []))
    return Section(
        "curves",
        "Curves",
        "curves.html",
        {
            "experiments": experiments,
            "groups": groups,
            "open_plots": OPEN_PLOTS,
            "numbers": [Row(name, tuple(map(_last, courses[name]))) for name in sorted(names, key=_rank)],
            "bands": any(len(experiment.runs) > 1 for experiment in experiments),
            "thinned": any(course is not None and len(course[0]) > most for row in courses.values() for course in row),
            "unit": unit,
        },
    )


def importance(metric: str) -> tuple[int, int, int, str]:
    """Return a key that puts accuracies before losses, and a metric before its spread over clients."""
    parts = metric.split("/")
    spread = sum(part in SPREADS for part in parts)
    kind = next((n for n, word in enumerate(("accuracy", "epsilon", "f1", "fid", "loss")) if word in parts[-1]), 9)
    return spread, len(parts), kind, metric


def _rank(metric: str) -> tuple[object, ...]:
    return (*_group_rank(metric.partition("/")[0]), *importance(metric))


def _group_rank(group: str) -> tuple[int, str]:
    if group in GROUPS:
        return GROUPS.index(group), ""
    return len(GROUPS) + (LAST_GROUPS.index(group) + 1 if group in LAST_GROUPS else 0), group


def _highlights(experiments: Sequence[ReportedExperiment], names: Sequence[str], changing: set[str]) -> list[str]:
    """Return what a reader wants to see first: what runs are judged by, then what changes of losses and fidelity."""
    judged = [name for run in all_runs(experiments) if (name := headline(run.metrics)) is not None]
    fidelity = [name for name in names if name.partition("/")[0] in ("fid", "kid")]
    wanted = ["test/accuracy_trained", "test/accuracy_aggregated", "train/loss", "privacy/epsilon", *fidelity]
    wanted += ["mask/drift", "comm/bytes"]
    return list(dict.fromkeys([*judged, *(name for name in wanted if name in changing)]))[:HIGHLIGHTS]


def _course(experiment: ReportedExperiment, metric: str) -> Course | None:
    """Return rounds, values and, of several seeds, the smallest and largest value; None if no run has the metric."""
    columns = [run.columns[metric] for run in experiment.runs if metric in run.columns]
    if not columns:
        return None
    if len(columns) == 1:
        return (*columns[0], None)
    values: dict[int, list[float]] = {}
    for rounds, column in columns:
        for t, value in zip(rounds, column, strict=True):
            values.setdefault(t, []).append(value)
    rounds = sorted(values)
    means = [math.fsum(values[t]) / len(values[t]) if all(map(math.isfinite, values[t])) else math.nan for t in rounds]
    return rounds, means, ([min(values[t]) for t in rounds], [max(values[t]) for t in rounds])


def _plot(
    metric: str, experiments: Sequence[ReportedExperiment], courses: Sequence[Course | None], unit: str, most: int
) -> Plot:
    figure = new_figure(unit)
    said = []
    infinite = 0
    for experiment, course in zip(experiments, courses, strict=True):
        if course is None:
            continue
        rounds, values, band = course
        infinite += sum(map(math.isinf, values))
        add_curve(figure, rounds, values, name=experiment.label, number=experiment.number, band=band, most=most)
        said.append(f"{experiment.label} {words.number(values[0])} to {words.number(values[-1])}")
    direction = "smaller is better" if falls(metric) else ""
    note = f"{infinite} infinite value{'s' * (infinite > 1)} not drawn" if infinite else direction
    return Plot(metric, f"{metric} by {unit}: {words.listed(said)}", figure, kind="curve", note=note)


def _is_constant(courses: Sequence[Course | None]) -> bool:
    """Whether a metric has one value in each experiment, more than once in some: a flat line says nothing."""
    known = [course[1] for course in courses if course is not None]
    return all(len(set(values)) == 1 for values in known) and any(len(values) > 1 for values in known)


def _constant_text(courses: Sequence[Course | None]) -> str:
    return words.listed(words.number(course[1][0]) for course in courses if course is not None)


def _last(course: Course | None) -> str:
    return "" if course is None else f"{words.number(course[1][-1])} ({course[0][-1]})"
