"""`flgen plot comparison`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import Experiment, chosen_outcomes, find_experiments, outcomes, words
from flgen.commands.plot.tables import markdown_table, write_csv, write_text
from flgen.experiment.summary import spread_text
from flgen.figures.comparison_bars import BEST, CHOSEN, FINAL, Bars, draw_comparison
from flgen.figures.paper import figure_files
from flgen.metrics.over_seeds import Spread, over_seeds


class Reading(NamedTuple):
    """One number of each experiment, as it stands in table, figure and CSV.

    Args:
        column: How its columns in the CSV begin.
        legend: Its name in the figure.
        heading: That in the table.
        spreads: Over the seeds, one per experiment; of no seed where an experiment lacks it.
        colour: Of its bars.
    """

    column: str
    legend: str
    heading: str
    spreads: Sequence[Spread]
    colour: str


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the final, the best and any chosen value of some runs, print them as a table, and return the files."""
    parser = KindParser("comparison", "Draw what some runs reached in the end and at best, with the spread over seeds.")
    parser.add_runs()
    parser.add_labels()
    parser.add_metric()
    parser.add_output("comparison.png")
    options = parser.parse(arguments)
    png, _ = figure_files(options.output)
    experiments = find_experiments(options.runs, options.labels)
    labels = [one.label for one in experiments]
    found = [outcomes(one, options.metric) for one in experiments]
    seeds, rounds = [len(one) for one in found], [one[0].final_round for one in found]
    final = [over_seeds([outcome.final for outcome in one]) for one in found]
    best = [over_seeds([outcome.best for outcome in one]) for one in found]
    chosen = [_chosen(one, options.metric) for one in experiments]
    readings = [
        Reading("final", "final round", "final", final, FINAL),
        Reading("best", "best round", "best", best, BEST),
    ]
    if any(spread.n for spread in chosen):  # clients hold samples back
        readings = [
            Reading("final", "last", "last", final, FINAL),
            Reading("validated", "chosen on validation", "chosen on validation", chosen, CHOSEN),
            Reading("best", "best on test (flatters)", "best on test (flatters)", best, BEST),
        ]
    figures = draw_comparison(
        labels,
        [_bars(reading) for reading in readings],
        options.output,
        xlabel=words(options.metric),
        numbers=[_text(options.metric, spread) for spread in final],
    )
    rows = list(zip(labels, zip(*(reading.spreads for reading in readings), strict=True), seeds, rounds, strict=True))
    csv, markdown = png.with_suffix(".csv"), png.with_suffix(".md")
    write_csv(
        csv,
        [
            (label, n, round, *(number for spread in spreads for number in spread[:2]))
            for label, spreads, n, round in rows
        ],
        (
            "run",
            "seeds",
            "final_round",
            *(f"{reading.column}_{number}" for reading in readings for number in ("mean", "std")),
        ),
    )
    text = markdown_table(
        (words(options.metric), *(reading.heading for reading in readings), "seeds", "last round"),
        [
            (label, *(_text(options.metric, spread) for spread in spreads), str(n), str(round))
            for label, spreads, n, round in rows
        ],
    )
    write_text(markdown, text)
    print(text, end="")
    return (*figures, csv, markdown)


def _chosen(experiment: Experiment, metric: str) -> Spread:
    """Return what validation samples choose, over the seeds; of no seed where there are none."""
    seeds = chosen_outcomes(experiment, metric)
    return Spread(math.nan, math.nan, 0) if seeds is None else over_seeds([seed.value for seed in seeds])


def _bars(reading: Reading) -> Bars:
    import numpy as np

    mean, std = np.array([spread[:2] for spread in reading.spreads], dtype=np.float64).T
    return Bars(reading.legend, mean, std, reading.colour)


def _text(metric: str, spread: Spread) -> str:
    return spread_text(metric, spread).replace("+-", "±") if spread.n else "none"
