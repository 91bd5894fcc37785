"""One number for a run from one number of each round: the final one, and the best (gptfl.md, section 7.1).

The final round is what a run is worth. The best one is chosen on the very data that it is measured on, so it flatters;
it is reported beside the final one, never in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flgen.errors import FlgenError

Row = Mapping[str, float]

HEADLINES = ("test/accuracy", "test/accuracy_trained", "test/accuracy_aggregated")
"""The metrics that a round is judged by, the first that a run has; a run without any is judged by its first FID."""


class FinalAndBest(NamedTuple):
    """A metric at the last round and at the best one.

    Args:
        final: Its value at the last round that has it.
        final_round: That round.
        best: Its best value.
        best_round: The first round that has it.
    """

    final: float
    final_round: int
    best: float
    best_round: int


def final_and_best(rows: Sequence[Row], metric: str = "test/accuracy") -> FinalAndBest:
    """Return a metric at the last evaluated round and at the best one.

    Args:
        rows: Of metrics.csv, by ascending round.
        metric: Its name; distances and losses are best where they are smallest, everything else where it is largest.

    Raises:
        FlgenError: No row has the metric.
    """
    evaluated = [row for row in rows if metric in row]
    if not evaluated:
        raise FlgenError(f"no round has {metric}: choose a run that measures it, or another metric")
    last, best = evaluated[-1], (min if falls(metric) else max)(evaluated, key=lambda row: row[metric])
    return FinalAndBest(last[metric], int(last["round"]), best[metric], int(best["round"]))


def headline(rows: Sequence[Row]) -> str | None:
    """Return the metric that the rounds of a run are judged by, None if it has neither accuracy nor FID."""
    names = {name: None for row in rows for name in row}
    known = [name for name in HEADLINES if name in names]
    return next(iter([*known, *(name for name in names if name.startswith("fid/"))]), None)


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of the round with the best headline metric, None if there is no such metric."""
    metric = headline(rows)
    if metric is None:
        return None
    best = final_and_best(rows, metric).best_round
    return next(row for row in rows if row["round"] == best)


def falls(metric: str) -> bool:
    """Whether smaller is better."""
    return any(part.startswith(("fid", "kid")) or "loss" in part for part in metric.split("/"))
