"""Privacy spent: epsilon over rounds, and what it promises to whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flgen.figures.report import words
from flgen.figures.report.plots import Plot, add_curve, hue, new_figure, plain
from flgen.figures.report.runs import ReportedExperiment, ReportedRun, all_runs
from flgen.figures.report.section import Section

EPSILON = "privacy/epsilon"


class Statement(NamedTuple):
    """What a run promises.

    Args:
        label: The run.
        summary: What it has spent.
        lines: What the method says of the promise: name and text.
    """

    label: str
    summary: str
    lines: list[tuple[str, str]]


def privacy(experiments: Sequence[ReportedExperiment]) -> Section | None:
    """Return the section on differential privacy; None if no run has any."""
    statements = [said for run in all_runs(experiments) if (said := _statement(run)) is not None]
    if not statements:
        return None
    figure = new_figure("round", "epsilon")
    for experiment in experiments:
        for run in experiment.runs:
            rounds, spent = run.columns.get(EPSILON, ([], []))
            if any(map(math.isfinite, spent)):
                add_curve(figure, rounds, spent, name=run.label, number=experiment.number)
                _add_budget(figure, run, experiment.number)
    figure.update_yaxes(rangemode="tozero")
    plot = Plot("epsilon spent", "; ".join(f"{one.label}: {one.summary}" for one in statements), figure)
    return Section(
        "privacy",
        "Privacy",
        "privacy.html",
        {
            "statements": statements,
            "plot_of": plot if figure.data else None,
            "several": len(all_runs(experiments)) > 1,
        },
    )


def _statement(run: ReportedRun) -> Statement | None:
    record = _record(run)
    spent = run.columns.get(EPSILON, ([], []))[1]
    if not spent and not record:
        return None
    if not spent:
        summary = "nothing was counted"
    elif math.isinf(spent[-1]):
        summary = "epsilon is infinite: nothing is promised"
    else:
        delta = record.get("delta")
        summary = f"epsilon {words.number(spent[-1])}" + (f" at delta {delta:g}" if isinstance(delta, float) else "")
        summary += f" after {run.unit} {run.columns[EPSILON][0][-1]}"
    return Statement(
        run.label,
        summary,
        [(name.replace("_", " "), _text(value)) for name, value in record.items() if value is not None],
    )


def _record(run: ReportedRun) -> dict[str, object]:
    for event in reversed(run.events):
        if event.get("event") == "provenance" and isinstance(event.get("privacy"), Mapping):
            return dict(event["privacy"])
    return {}


def _add_budget(figure: object, run: ReportedRun, number: int) -> None:
    budget = _record(run).get("budget_epsilon")
    if isinstance(budget, (int, float)) and math.isfinite(budget):
        figure.add_hline(  # type: ignore[attr-defined]
            float(budget),
            line={"color": hue(number), "dash": "dot", "width": 1},
            annotation={"text": plain(f"budget {budget:g}"), "font": {"size": 11}},
        )


def _text(value: object) -> str:
    return words.number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
