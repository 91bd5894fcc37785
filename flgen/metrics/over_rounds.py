"""One number for a run from one of each round: the final one, the best (gptfl.md, section 7.1), and a chosen one.

The final round is what a run is worth. The best one is chosen on the very data that it is measured on, so it flatters;
it is reported beside the final one, never in its place. Where clients hold samples back for validation, a round can be
chosen on those (fedktl.md, section 8, item 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from flgen.errors import FlgenError

Row = Mapping[str, float]

HEADLINES = ("test/accuracy", "test/accuracy_trained", "test/accuracy_aggregated")
"""The metrics that a round is judged by, the first that a run has; a run without any is judged by its first FID."""


VALIDATED = "val/pooled/accuracy_"
"""How the accuracies that choose a round begin, of a run whose clients hold samples back for validation."""


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


class Chosen(NamedTuple):
    """A metric at the round that was chosen on validation samples.

    Args:
        value: Its value there.
        round: That round.
        by: The validation metric that chose it.
    """

    value: float
    round: int
    by: str


def chosen_on_validation(rows: Sequence[Row], metric: str) -> Chosen | None:
    """Return a metric at the first round with the best validation accuracy; None without validation samples.

    What decides is the pooled accuracy of the same model: `val/pooled/accuracy_trained` for every metric that ends so,
    `val/pooled/accuracy_aggregated` for those of the common model, such as `test/accuracy`.

    Args:
        rows: Of metrics.csv, by ascending round.
        metric: Its name.
    """
    by = _decider(rows, metric)
    both = [row for row in rows if by in row and metric in row]
    if by is None or not both:
        return None
    best = max(both, key=lambda row: row[by])
    return Chosen(best[metric], int(best["round"]), by)


def _decider(rows: Sequence[Row], metric: str) -> str | None:
    names = _names(rows)
    for name in names:
        point = name.removeprefix(VALIDATED)
        of_common_model = point == "aggregated" and f"{metric}_aggregated" in names
        if name != point and (metric.endswith(f"_{point}") or of_common_model):
            return name
    return None


def validated_headline(rows: Sequence[Row]) -> str | None:
    """Return the pooled test accuracy of the model that validation samples choose a round of, None without such."""
    points = [name.removeprefix(VALIDATED) for name in _names(rows) if name.startswith(VALIDATED)]
    found = [f"test/pooled/accuracy_{point}" for point in sorted(points, key=lambda point: point != "trained")]
    return next((name for name in found if name in _names(rows)), None)


def headline(rows: Sequence[Row]) -> str | None:
    """Return the metric that the rounds of a run are judged by, None if it has neither accuracy nor FID."""
    names = _names(rows)
    known = [name for name in HEADLINES if name in names]
    return next(iter([*known, *(name for name in names if name.startswith("fid/"))]), None)


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of the round with the best headline metric, None if there is no such metric."""
    metric = headline(rows)
    if metric is None:
        return None
    best = final_and_best(rows, metric).best_round
    return next(row for row in rows if row["round"] == best)


def chosen_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of the round that validation samples choose by the headline metric's model; None without such."""
    metric = headline(rows)
    chosen = None if metric is None else chosen_on_validation(rows, metric)
    return None if chosen is None else next(row for row in rows if row["round"] == chosen.round)


def falls(metric: str) -> bool:
    """Whether smaller is better."""
    return any(part.startswith(("fid", "kid")) or "loss" in part for part in metric.split("/"))


RISING = ("accuracy", "f1", "precision", "recall", "density", "coverage")
"""How the part of a metric's name begins that says what is measured, where more is better."""

NOT_JUDGED = ("comm", "time", "mask", "privacy", "std")
"""Parts of names of what a run costs, how it is set, or how its clients differ: no end of the scale is the better."""


def summary_kind(metric: str) -> Literal["min", "max", "last"]:
    """Return which value of all rounds a metric is summarised by: the best one, or for what is no quality the last.

    Args:
        metric: Its name.
    """
    parts = metric.split("/")
    if any(part in NOT_JUDGED for part in parts):
        return "last"
    if falls(metric) or "distance" in parts:
        return "min"
    return "max" if any(part.startswith(RISING) for part in parts) else "last"


def _names(rows: Sequence[Row]) -> list[str]:
    """Return the metrics of some rows, in the order in which they first appear."""
    return list({name: None for row in rows for name in row})
