"""What happened: events.jsonl as a table, errors first to the eye, checkpoints gathered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from flgen.figures.report import words
from flgen.figures.report.runs import ReportedExperiment, ReportedRun, all_runs
from flgen.figures.report.section import Section

Severity = Literal["error", "warning", "plain"]

SEVERITIES: Mapping[str, Severity] = {
    "client_error": "error",
    "failed": "error",
    "stopped": "warning",
    "budget": "warning",
    "resume": "warning",
}
SEVERITY_ORDER: Sequence[Severity] = ("error", "warning", "plain")
MOST_LINES = 400
LONGEST_TEXT = 600


class Line(NamedTuple):
    """A row of the table.

    Args:
        time: When, in UTC; of several checkpoints the first.
        round: Of which round or rounds.
        event: What kind.
        text: What exactly.
        severity: How much it should stand out.
    """

    time: str
    round: str
    event: str
    text: str
    severity: Severity


class Log(NamedTuple):
    """The events of one run.

    Args:
        label: The run.
        lines: In the order in which they happened.
        note: What is not shown.
        errors: How many there are.
    """

    label: str
    lines: list[Line]
    note: str
    errors: int


def events(experiments: Sequence[ReportedExperiment]) -> Section | None:
    """Return the section on events; None if no run has any."""
    logs = [_log(run) for run in all_runs(experiments) if run.events]
    return Section("events", "Events", "events.html", {"logs": logs}) if logs else None


def _log(run: ReportedRun) -> Log:
    lines = list(_lines(run.events))
    errors = sum(line.severity == "error" for line in lines)
    if len(lines) <= MOST_LINES:
        return Log(run.label, lines, "", errors)
    ends = MOST_LINES // 4
    places = range(ends, len(lines) - ends)
    middle = sorted(places, key=lambda place: SEVERITY_ORDER.index(lines[place].severity))[: MOST_LINES - 2 * ends]
    kept = [*lines[:ends], *(lines[place] for place in sorted(middle)), *lines[-ends:]]
    note = f"{len(kept)} of {len(lines)} lines are shown, errors before others; all are in events.jsonl"
    return Log(run.label, kept, note, errors)


def _lines(found: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield a line per event; checkpoints that follow each other are one."""
    for is_checkpoint, group in groupby(found, key=lambda event: event.get("event") == "checkpoint"):
        if not is_checkpoint:
            yield from map(_line, group)
            continue
        saved = list(group)
        first = _line(saved[0])
        rounds = [event["round"] for event in saved if isinstance(event.get("round"), int)]
        text = first.text if len(saved) == 1 else f"{len(saved)} checkpoints"
        yield first._replace(round=words.ranges(rounds).removeprefix("rounds ").removeprefix("round "), text=text)


def _line(event: Mapping[str, Any]) -> Line:
    kind = str(event.get("event", "?"))
    # What a generator's provenance calls a round is one of another run.
    when = "" if kind == "provenance" else event.get("round", event.get("epoch", ""))
    return Line(
        words.at(words.moment(event), seconds=True) or _cut(event.get("time", "")),
        _cut(when, 40),
        _cut(kind.replace("_", " "), 40),
        _cut(_described(kind, event)),
        SEVERITIES.get(kind, "plain"),
    )


def _described(kind: str, event: Mapping[str, Any]) -> str:
    if kind == "checkpoint" and isinstance(event.get("path"), str):
        return PurePath(event["path"]).name
    if kind == "client_error":
        return f"client {event.get('client')}: {event.get('error')}"
    if kind == "stopped":
        return f"by {words.signal_name(event.get('signal'))}"
    if kind in ("failed", "budget"):
        return str(event.get("error", event.get("why", "")))
    if kind == "provenance" and isinstance(event.get("privacy"), Mapping):
        return "the privacy that is promised: see Privacy"
    told = ("time", "event") if kind == "provenance" else ("time", "event", "round", "epoch")
    shown = {name: value for name, value in event.items() if name not in told}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items() if value is not None)


def _cut(text: Any, most: int = LONGEST_TEXT) -> str:
    shown = " ".join(str(text).split())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
