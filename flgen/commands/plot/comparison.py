"""`flgen plot comparison`."""

from __future__ import annotations

from pathlib import Path

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import find_experiments, outcomes, words
from flgen.commands.plot.tables import markdown_table, write_csv, write_text
from flgen.experiment.summary import spread_text
from flgen.figures.comparison_bars import draw_comparison
from flgen.figures.paper import figure_files
from flgen.metrics.over_seeds import Spread, over_seeds


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the final and the best value of some runs, print them as a table, and return the files."""
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
    final = [over_seeds([outcome.final for outcome in seeds]) for seeds in found]
    best = [over_seeds([outcome.best for outcome in seeds]) for seeds in found]
    rounds = [seeds[0].final_round for seeds in found]

    import numpy as np

    figures = draw_comparison(
        labels,
        np.array([spread.mean for spread in final]),
        np.array([spread.std for spread in final]),
        np.array([spread.mean for spread in best]),
        np.array([spread.std for spread in best]),
        options.output,
        xlabel=words(options.metric),
        numbers=[_text(options.metric, spread) for spread in final],
    )
    rows = list(zip(labels, final, best, rounds, strict=True))
    csv, markdown = png.with_suffix(".csv"), png.with_suffix(".md")
    write_csv(
        csv,
        [(label, last.n, round, last.mean, last.std, top.mean, top.std) for label, last, top, round in rows],
        ("run", "seeds", "final_round", "final_mean", "final_std", "best_mean", "best_std"),
    )
    text = markdown_table(
        (words(options.metric), "final", "best", "seeds", "last round"),
        [
            (label, _text(options.metric, last), _text(options.metric, top), str(last.n), str(round))
            for label, last, top, round in rows
        ],
    )
    write_text(markdown, text)
    print(text, end="")
    return (*figures, csv, markdown)


def _text(metric: str, spread: Spread) -> str:
    return spread_text(metric, spread).replace("+-", "±")
