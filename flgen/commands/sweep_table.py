"""How far the runs of a sweep are: a table on a terminal, one line per change anywhere else; and what came of them."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from flgen.commands.sweep_jobs import Job, common_metric
from flgen.deferred import TYPE_CHECKING
from flgen.experiment.records import atomic_replace
from flgen.experiment.sweep import Metric

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("index", "run_dir", "state", "round", "rounds", "computing_s", "metric", "last", "best", "best_round")
"""The first columns of sweep.csv; one for each parameter follows."""

FIRST = ("running", "failed", "stopped", "waiting", "done")
"""Whose lines are shown where a terminal has too few."""

_DRAW_EVERY_S = 0.5
_LINES_AROUND = 5  # of the table on a terminal: its head, and what the shell needs


class SweepDisplay:
    """Shows the runs of a sweep on stderr while they run.

    Args:
        jobs: The runs; they change while they run.
        metric: What they are compared by; None takes what they are judged by.
    """

    def __init__(self, jobs: Sequence[Job], metric: Metric | None) -> None:
        self._jobs, self._metric = jobs, metric
        self._shown = {job.index: job.state for job in jobs}
        self._next_draw = 0.0
        self._live: Any = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            self._console = Console(stderr=True)
            self._live = Live(console=self._console, get_renderable=self._table, auto_refresh=False)

    def __enter__(self) -> SweepDisplay:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.refresh()
            self._live.stop()

    def look(self) -> None:
        """Show what has changed."""
        if self._live is None:
            for job in self._jobs:
                if self._shown[job.index] != job.state:
                    self._shown[job.index] = job.state
                    with suppress(OSError):  # a reader that has gone away must not end the sweep
                        print(self._line(job), file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next_draw:
            self._next_draw = time.monotonic() + _DRAW_EVERY_S
            with suppress(OSError):
                self._live.refresh()

    def _line(self, job: Job) -> str:
        if job.state == "running":
            return f"index {job.index} running  {job.folder.path}"
        parts = [f"index {job.index} {job.state}", f"round {job.round}/{job.rounds}", self._newest(job)]
        return "  ".join([*(part for part in parts if part), f"{job.seconds:.0f} s"])

    def _newest(self, job: Job) -> str:
        metric = common_metric(self._metric, [job])
        value = None if metric is None else job.newest(metric.name)
        return "" if metric is None or value is None else f"{metric.name} {value:.4g}"

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, justify in (("index", "right"), ("state", "left"), ("round", "right"), ("time", "right")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column("newest", no_wrap=True)
        table.add_column("parameters", no_wrap=True, overflow="ellipsis")
        room = self._console.height - _LINES_AROUND
        shown = list(self._jobs)
        if len(shown) > room:
            shown = sorted(shown, key=lambda job: (FIRST.index(job.state), job.index))[: max(1, room)]
        for job in shown:
            spent = str(timedelta(seconds=int(job.seconds))) if job.started is not None else ""
            cells = (str(job.index), job.state, f"{job.round}/{job.rounds}", spent, self._newest(job), job.parameters)
            table.add_row(*(Text(cell) for cell in cells))
        if len(shown) < len(self._jobs):
            states = [job.state for job in self._jobs]
            table.caption = ", ".join(f"{states.count(state)} {state}" for state in FIRST if state in states)
        return table


def ranked(jobs: Sequence[Job], metric: Metric | None) -> list[Job]:
    """Return runs by the metric's value at their last round, the best first, and those that have none at the end.

    Args:
        jobs: The runs.
        metric: What they are compared by.
    """

    def key(job: Job) -> tuple[bool, float, int]:
        reached = job.reached(metric)
        if metric is None or reached is None or reached.final != reached.final:
            return True, 0.0, job.index
        return False, reached.final if metric.goal == "minimize" else -reached.final, job.index

    return sorted(jobs, key=key)


def summary_lines(jobs: Sequence[Job], metric: Metric | None) -> list[str]:
    """Return the table that ends a sweep: one line per run, the best first.

    Args:
        jobs: The runs.
        metric: What they are compared by.
    """
    heads = [metric.name, "best (round)"] if metric is not None else []
    rows = [["index", "state", "round", *heads, "parameters"]]
    for job in ranked(jobs, metric):
        reached = job.reached(metric)
        cells = (
            [f"{reached.final:.4g}", f"{reached.best:.4g} ({reached.best_round})"] if reached else ["-"] * len(heads)
        )
        rows.append([str(job.index), job.state, f"{job.round}/{job.rounds}", *cells, job.parameters])
    return aligned(rows)


def write_sweep_csv(
    path: Path, jobs: Sequence[Job], metric: Metric | None, values: Sequence[Mapping[str, Any]]
) -> None:
    """Write sweep.csv: one row per run, by its number, floats so that reading them gives the same bits.

    Args:
        path: The file.
        jobs: The runs.
        metric: What they are compared by.
        values: The parameters of each.

    Raises:
        FlgenError: It cannot be written.
    """
    names = list(values[0]) if values else []
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *names])
    for job, chosen in zip(jobs, values, strict=True):
        reached = job.reached(metric)
        about = [job.index, job.folder.path, job.state, job.round, job.rounds, round(job.computing_s, 1)]
        found = [repr(float(reached.final)), repr(float(reached.best)), reached.best_round] if reached else [""] * 3
        writer.writerow([*about, metric.name if metric else "", *found, *(chosen[name] for name in names)])
    with atomic_replace(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose columns stand below each other.

    Args:
        rows: Their cells, as many in each.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
