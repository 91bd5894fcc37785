"""`flgen plot accuracy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import run_folder
from flgen.errors import FlgenError, UsageError

AGGREGATED = "test/accuracy_aggregated"
TRAINED = "test/accuracy_trained"


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the local test accuracy of some runs over their rounds; return the files."""
    parser = KindParser(
        "accuracy", "Draw the mean accuracy on the clients' own test data over the rounds of some runs."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="Run folders.")
    parser.add_labels()
    parser.add_output("accuracy.png")
    options = parser.parse(arguments)
    labels = options.labels or [Path(run).resolve().name for run in options.runs]
    if len(labels) != len(options.runs):
        raise UsageError(
            f"--labels has {len(labels)} of the {len(options.runs)} names that are needed: give one per RUN"
        )

    from flgen.figures.accuracy_curves import draw_accuracy_curves
    from flgen.figures.paper import figure_files

    figure_files(options.output)  # a wrong name is told before runs are read
    curves = [_curves(Path(run), label) for run, label in zip(options.runs, labels, strict=True)]
    return draw_accuracy_curves(curves, options.output)


def _curves(path: Path, label: str) -> Any:
    from flgen.experiment.records import read_metrics
    from flgen.figures.accuracy_curves import AccuracyCurves

    run = run_folder(path)
    rows = read_metrics(run / "metrics.csv")
    columns = [{int(row["round"]): row[name] for row in rows if name in row} for name in (AGGREGATED, TRAINED)]
    if not any(columns):
        raise FlgenError(
            f"{run / 'metrics.csv'} has no {AGGREGATED} and no {TRAINED}: choose a run whose method tests its clients, "
            "with --evaluation.every 1"
        )
    return AccuracyCurves(label, *columns)
