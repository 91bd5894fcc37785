"""The tables of docs/results/fedktl.md: train FedKTL and its baselines on the same clients, several seeds, and compare.

fedktl_results.py digits --runs runs/results     trains what is missing, the generator first, prints the table
fedktl_results.py table RUN [RUN ...]            prints it for finished runs; the seed-* of one folder are one row
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from result_runs import train

from flgen.commands.plot.costs import WAYS, cost_of
from flgen.commands.plot.runs import Experiment, find_experiments
from flgen.experiment.records import read_metrics
from flgen.metrics.over_rounds import chosen_on_validation, final_and_best, validated_headline
from flgen.metrics.over_seeds import Spread, over_seeds

METHODS = {
    "Local": "local_networks",
    "LG-FedAvg": "lgfedavg",
    "FedGen": "fedgen_heads",
    "FedGH": "fedgh",
    "FML": "fml",
    "FedKD": "fedkd",
    "FedDistill": "feddistill",
    "FedProto": "fedproto",
    "FedTGP": "fedtgp",
    "FedKTL": None,
}
POOLED = "test/pooled/accuracy_trained"
HEADER = (
    "method",
    "accuracy, chosen on validation",
    "last round",
    "best on test (flatters)",
    "scalars up",
    "formula",
    "scalars down",
    "formula",
    "beside the formula",
    "MB up",
    "MB down",
)


def digits(folder: Path, seeds: Sequence[int], rounds: int | None = None) -> str:
    """Train the generator, then every method with every seed, and return the table."""
    length = [] if rounds is None else [f"--trainer.rounds={rounds}"]
    train("fedktl_generator_digits", None, folder / "generator", [])
    for overlay in METHODS.values():
        drawn_by = [] if overlay else [f"--method.generator.checkpoint={folder / 'generator' / 'checkpoints' / 'last'}"]
        train("fedktl_digits", overlay, folder / (overlay or "fedktl"), [*length, *drawn_by], seeds)
    return table(
        {
            name: Experiment(name, tuple(folder / (overlay or "fedktl") / f"seed-{seed}" for seed in seeds))
            for name, overlay in METHODS.items()
        }
    )


def table(experiments: Mapping[str, Experiment]) -> str:
    """Return the comparison of methods: pooled test accuracy in percent, and what a round sends."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for name, experiment in experiments.items():
        readings = [accuracies(run) for run in experiment.runs]
        cost = cost_of(experiment)
        cells = [name, *(share(over_seeds([reading[place] for reading in readings])) for place in range(3))]
        for way in WAYS:
            cells += [number(cost.scalars(way)), number(cost.formula(way))]
        cells.append("; ".join(filter(None, map(cost.beside, WAYS))))
        cells += [f"{cost.megabytes(way):.4f}" for way in WAYS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracies(run: Path) -> tuple[float, float, float]:
    """Return the pooled test accuracy at the round chosen on validation, at the last one, and the best; NaN: none."""
    rows = read_metrics(run / "metrics.csv")
    metric = validated_headline(rows) or POOLED
    chosen = chosen_on_validation(rows, metric)
    reached = final_and_best(rows, metric)
    return math.nan if chosen is None else chosen.value, reached.final, reached.best


def share(spread: Spread) -> str:
    """Return the mean in percent, and the sample standard deviation over seeds if there are several."""
    if math.isnan(spread.mean):
        return ""
    return f"{100 * spread.mean:.2f}" + (f" ± {100 * spread.std:.2f}" if spread.n > 1 else "")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    of_digits = commands.add_parser("digits")
    of_digits.add_argument("--runs", type=Path, required=True)
    of_digits.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_digits.add_argument("--rounds", type=int, help="fewer than the configuration's, for a try")
    of_digits.set_defaults(do=lambda given: digits(given.runs, given.seeds, given.rounds))
    of_runs = commands.add_parser("table")
    of_runs.add_argument("runs", nargs="+")
    of_runs.set_defaults(do=lambda given: table({one.label: one for one in find_experiments(given.runs)}))
    given = parser.parse_args()
    do: Callable[[argparse.Namespace], str] = given.do
    print(do(given))


if __name__ == "__main__":
    main()
