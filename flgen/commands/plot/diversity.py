"""`flgen plot diversity`."""

from __future__ import annotations

from pathlib import Path

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import curve, find_experiments, over_rounds
from flgen.commands.plot.tables import write_csv
from flgen.experiment.records import read_metrics
from flgen.figures.gradient_diversity import draw_gradient_diversity
from flgen.figures.paper import figure_files

DIVERSITY = "diversity/gradient"
COSINE = "diversity/cosine"
REMEDY = "choose runs that were made with --evaluation.gradient_diversity true"


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the gradient diversity of some runs over their rounds; return the files."""
    parser = KindParser("diversity", "Draw how differently the clients of some runs want to change the model.")
    parser.add_runs()
    parser.add_labels()
    parser.add_output("diversity.png")
    options = parser.parse(arguments)
    png, _ = figure_files(options.output)
    experiments = find_experiments(options.runs, options.labels)
    diversity = {one.label: over_rounds(one, DIVERSITY, REMEDY) for one in experiments}
    # A round of one client has no pair, so that a run may have no cosine at all.
    paired = [one for one in experiments if all(_has_pairs(run) for run in one.runs)]
    cosine = {one.label: over_rounds(one, COSINE, REMEDY) for one in paired}
    figures = draw_gradient_diversity(
        [curve(label, points) for label, points in diversity.items()],
        [curve(one.label, cosine.get(one.label, [])) for one in experiments],
        options.output,
    )
    table = png.with_suffix(".csv")
    rows = [
        (label, metric, point.x, *point.spread)
        for metric, courses in ((DIVERSITY, diversity), (COSINE, cosine))
        for label, points in courses.items()
        for point in points
    ]
    write_csv(table, rows, ("run", "metric", "round", "mean", "std", "seeds"))
    return (*figures, table)


def _has_pairs(run: Path) -> bool:
    return any(COSINE in row for row in read_metrics(run / "metrics.csv"))
