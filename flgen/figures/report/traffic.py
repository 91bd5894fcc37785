"""What was sent: bytes per round and link, and in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from flgen.figures.report import words
from flgen.figures.report.plots import DASHES, HUES, MOST_POINTS, Plot, add_curve, new_figure
from flgen.figures.report.runs import ReportedExperiment, ReportedRun, Rows, all_runs
from flgen.figures.report.section import Section

ROOM = 60_000  # points of all curves together


class Carried(NamedTuple):
    """What one kind of link carried in one phase of all rounds.

    Args:
        label: The run.
        phase: "download", "upload", ...
        link: Who sends to whom.
        messages: Payloads.
        bytes: Their encoded size.
        per_round: The same, of the mean round.
        wire_bytes: What moved between processes.
    """

    label: str
    phase: str
    link: str
    messages: str
    bytes: str
    per_round: str
    wire_bytes: str


def traffic(experiments: Sequence[ReportedExperiment]) -> Section | None:
    """Return the section on communication; None if no run has a ledger."""
    if not any(run.ledger for run in all_runs(experiments)):
        return None
    several = len(experiments) > 1
    links = list(dict.fromkeys(_link(row) for run in all_runs(experiments) for row in run.ledger))
    by_round, in_all = new_figure("round", "bytes"), new_figure("round", "bytes")
    most = max(24, min(MOST_POINTS, ROOM // (len(experiments) * (len(links) + 1))))
    for experiment in experiments:
        run = next((one for one in experiment.runs if one.ledger), None)
        if run is None:
            continue
        rounds = sorted({row["round"] for row in run.ledger})
        totals = _by_round(run.ledger, rounds)
        for place, link in enumerate(links):
            rows = [row for row in run.ledger if _link(row) == link]
            if rows:
                number = experiment.number if several else place
                dashes = DASHES[place % len(DASHES)] if several else "solid"
                name = f"{experiment.label}: {link}" if several else link
                spoken = _by_round(rows, rounds)
                add_curve(
                    by_round, rounds, spoken, name=name, number=number, dashes=dashes, legend=not several, most=most
                )
        summed = list(accumulate(totals))
        add_curve(in_all, rounds, summed, name=experiment.label, number=experiment.number, most=most)
    for figure in (by_round, in_all):
        figure.update_yaxes(exponentformat="SI", ticksuffix="B", rangemode="tozero")
        figure.update_traces(hovertemplate="%{y:.4~s}B")
        figure.update_layout(legend={"orientation": "h", "y": -0.25, "x": 0})
    by_round.update_layout(showlegend=not several)
    table = [line for run in all_runs(experiments) for line in _lines(run)]
    said = "; ".join(f"{line.label} {line.phase} {line.bytes}" for line in table[:12])
    return Section(
        "communication",
        "Communication",
        "traffic.html",
        {
            "plots": [
                Plot("bytes per round and link", f"Encoded bytes of each round by link. In all: {said}", by_round, 320),
                Plot("bytes up to each round", f"Encoded bytes up to each round. In all: {said}", in_all, 320),
            ],
            "table": table,
            "experiments": experiments,
            "hues": len(HUES),  # so many experiments have the same dashes
            "links": list(enumerate(links)) if several else [],
            "several": len(all_runs(experiments)) > 1,
            "seeds": any(len(experiment.runs) > 1 for experiment in experiments),
        },
    )


def _link(row: Mapping[str, Any]) -> str:
    return f"{row['phase']}, {str(row['link']).replace('->', ' → ')}"


def _by_round(rows: Rows, rounds: Sequence[int]) -> list[float]:
    found = dict.fromkeys(rounds, 0)
    for row in rows:
        found[row["round"]] += row["bytes"]
    return [float(found[t]) for t in rounds]


def _lines(run: ReportedRun) -> list[Carried]:
    rounds = max(1, len({row["round"] for row in run.ledger}))
    lines = []
    for phase, link in dict.fromkeys((row["phase"], row["link"]) for row in run.ledger):
        rows = [row for row in run.ledger if (row["phase"], row["link"]) == (phase, link)]
        messages, encoded, moved = (sum(row[name] for row in rows) for name in ("messages", "bytes", "wire_bytes"))
        lines.append(
            Carried(
                run.label,
                phase,
                str(link).replace("->", " → "),
                f"{messages:,}",
                words.size(encoded),
                words.size(encoded / rounds),
                words.size(moved),
            )
        )
    return lines
