"""summary.csv: what several seeds of one experiment gave, metric by metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from flgen.errors import FlgenError
from flgen.experiment.records import atomic_replace
from flgen.metrics.over_rounds import (
    Row,
    best_row,
    chosen_on_validation,
    chosen_row,
    final_and_best,
    validated_headline,
)
from flgen.metrics.over_seeds import Spread, over_seeds

Round = Literal["final", "validated", "best"]


class SummaryRow(NamedTuple):
    """One metric over the seeds.

    Args:
        metric: Its name.
        round: "final": each seed's last round; "validated": the round of each seed that its validation samples choose;
            "best": the round of each seed with the best headline metric.
        mean: Over the seeds that have the metric.
        std: Sample standard deviation, NaN of a single seed.
        n: Number of those seeds.
    """

    metric: str
    round: Round
    mean: float
    std: float
    n: int


def summarise(runs: Sequence[Sequence[Mapping[str, float]]]) -> list[SummaryRow]:
    """Return mean and spread over the seeds, of each metric of the final round, of a chosen one, then of the best one.

    Args:
        runs: The rows of each seed's metrics.csv, at least one row each.
    """
    found = _over("final", [rows[-1] for rows in runs])
    chosen = [row for row in map(chosen_row, runs) if row is not None]
    best = [row for row in map(best_row, runs) if row is not None]
    return found + _over("validated", chosen) + _over("best", best)


def write_summary(path: Path, rows: Sequence[SummaryRow]) -> None:
    """Write summary.csv, floats so that reading them gives the same bits.

    Raises:
        FlgenError: It cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SummaryRow._fields)
    writer.writerows([row.metric, row.round, repr(float(row.mean)), repr(float(row.std)), row.n] for row in rows)
    with atomic_replace(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def read_summary(path: Path) -> list[SummaryRow]:
    """Return what `write_summary` wrote.

    Raises:
        FlgenError: The file is missing or damaged.
    """
    try:
        header, *cells = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        if tuple(header) != SummaryRow._fields or not all(round in get_args(Round) for _, round, *_ in cells):
            raise ValueError(f"its columns are not {', '.join(SummaryRow._fields)}")
        return [
            SummaryRow(metric, round, float(mean), float(std), int(n))  # type: ignore[arg-type]
            for metric, round, mean, std, n in cells
        ]
    except OSError as error:
        raise FlgenError(f"{path} cannot be read ({error.strerror}): `flgen fit --seeds` writes it") from error
    except (ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise FlgenError(f"{path} is damaged ({reason}): `flgen fit --seeds` writes it anew") from error


def describe_spread(metric: str, spread: SummaryRow | Spread) -> str:
    """Return one line about a metric, an accuracy in percent: "test/accuracy 80.50 +- 0.46 (3 seeds)"."""
    return f"{metric} {spread_text(metric, spread)} ({spread.n} seed{'s' * (spread.n > 1)})"


def describe_readings(rows: Sequence[Row]) -> str | None:
    """Return one line about a run's pooled test accuracy, in percent: at its last round, the chosen and the best one.

    Args:
        rows: Of metrics.csv, by ascending round.

    Returns:
        None for a run whose clients hold nothing back for validation.
    """
    metric = validated_headline(rows)
    chosen = None if metric is None else chosen_on_validation(rows, metric)
    if metric is None or chosen is None:
        return None
    final, final_round, best, best_round = final_and_best(rows, metric)
    return (
        f"{metric}: last {100 * final:.2f} (round {final_round}), chosen on validation {100 * chosen.value:.2f} "
        f"(round {chosen.round}), best on test {100 * best:.2f} (round {best_round}; flatters)"
    )


def spread_text(metric: str, spread: SummaryRow | Spread) -> str:
    """Return mean and deviation of a metric, an accuracy in percent: "80.50 +- 0.46"."""
    scale = 100 if "accuracy" in metric else 1
    digits = ".2f" if scale == 100 else ".4g"
    deviation = f" +- {scale * spread.std:{digits}}" if spread.n > 1 else ""
    return f"{scale * spread.mean:{digits}}{deviation}"


def _over(round: Round, rows: Sequence[Mapping[str, float]]) -> list[SummaryRow]:
    names = {name: None for row in rows for name in row if name != "round"}
    return [SummaryRow(name, round, *over_seeds([row[name] for row in rows if name in row])) for name in names]
