"""`flgen plot amount`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import (
    Experiment,
    Point,
    curve,
    find_experiments,
    outcomes,
    short_class,
    words,
    write_points,
)
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import read_events
from flgen.experiment.runs import RunFolder
from flgen.figures.marked_curves import draw_marked_curves
from flgen.figures.paper import figure_files
from flgen.metrics.over_seeds import over_seeds


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw accuracy against the amount of synthetic data that the server has trained on; return the files."""
    parser = KindParser("amount", "Draw accuracy against the amount of synthetic data, before and after clients train.")
    parser.add_runs()
    parser.add_argument(
        "--real",
        type=float,
        metavar="N",
        help="Number of real samples, per class if all runs of `flgen pretrain` have --per_class: the axis then shows "
        "multiples of it.",
    )
    parser.add_metric()
    parser.add_output("amount.png")
    options = parser.parse(arguments)
    if options.real is not None and not 0 < options.real < math.inf:
        raise UsageError(f"--real is {options.real:g}: give a number above 0")
    png, _ = figure_files(options.output)
    experiments = find_experiments(options.runs)
    courses, unit = _courses(experiments, options.metric, options.real or 1)
    figures = draw_marked_curves(
        [curve(label, points) for label, points in courses.items()],
        options.output,
        xlabel=f"synthetic {unit}" if options.real is None else f"synthetic data, multiples of {options.real:g} {unit}",
        ylabel=words(options.metric),
        from_zero=True,
    )
    table = png.with_suffix(".csv")
    write_points(table, "amount", courses)
    return (*figures, table)


def _courses(experiments: Sequence[Experiment], metric: str, real: float) -> tuple[dict[str, list[Point]], str]:
    """Return the points by the name of their curve, and what the amounts count.

    Args:
        experiments: Runs of server training, and federated ones that start from their weights.
        metric: What was measured.
        real: The amount that counts as 1.
    """
    servers = [one for one in experiments if not _is_federated(one)]
    federated = [one for one in experiments if _is_federated(one)]
    if not servers:
        raise UsageError("flgen plot amount: name the runs of `flgen pretrain`, of different amounts, as RUN")
    amounts, unit = _amounts([run for one in servers for run in one.runs])
    several = len({short_class(one.runs[0], "model") for one in experiments}) > 1
    courses: dict[str, list[Point]] = {}
    for one in [*servers, *federated]:
        stage = f"then {short_class(one.runs[0], 'method')}" if one in federated else "server training"
        label = f"{short_class(one.runs[0], 'model')}: {stage}" if several else stage
        begun = [_origin(run, amounts) for run in one.runs] if one in federated else one.runs
        amount = _same(one, [amounts[run] for run in begun]) / real
        points = courses.setdefault(label, [])
        if any(point.x == amount for point in points):
            raise UsageError(
                f"{one.runs[0]} is the second run of the same amount ({label}): leave one out, or call them seed-0, "
                "seed-1 of one folder"
            )
        points.append(Point(amount, over_seeds([outcome.final for outcome in outcomes(one, metric)])))
    for points in courses.values():
        points.sort(key=lambda point: point.x)
    return courses, unit


def _is_federated(experiment: Experiment) -> bool:
    return "method" in RunFolder(experiment.runs[0]).read_config()


def _amounts(runs: Sequence[Path]) -> tuple[dict[Path, int], str]:
    """Return what each run of server training has seen, and what is counted: per class, if all are limited so."""
    per_class: dict[Path, int] = {}
    for run in runs:
        config = RunFolder(run).read_config()
        if "samples" in config and config["samples"] is None:
            raise UsageError(f"{run} was trained on real samples (its --samples is null): leave it out")
        if config.get("per_class") is not None:
            per_class[run] = config["per_class"]
    if len(per_class) == len(runs):
        return per_class, "samples per class"
    totals: dict[Path, int] = {}
    for run in runs:
        counts = [event["samples"] for event in _events(run) if "samples" in event]
        if not counts:
            raise FlgenError(f"{RunFolder(run).events} does not say how many samples: choose a run of `flgen pretrain`")
        totals[run] = counts[-1]
    return totals, "samples"


def _origin(run: Path, servers: dict[Path, int]) -> Path:
    """Return the run of server training that a federated one has its initial weights from.

    It is known by the digest of the weights, so that folders may have been moved; where a run has none, by the path.

    Raises:
        UsageError: It is not among them.
    """
    weights = RunFolder(run).read_config().get("initial_weights")
    if weights is None:
        raise UsageError(f"{run} starts from random weights (its --initial_weights is null): leave it out")
    taken = {event["initial_weights_sha256"] for event in _events(run) if event.get("initial_weights_sha256")}
    for server in servers:
        left = {event["sha256"] for event in _events(server) if event.get("sha256")}
        inside = Path(weights).resolve().is_relative_to(server.resolve())
        if (taken & left) if taken and left else inside:
            return server
    raise UsageError(f"{run} starts from {weights}, of none of the runs that are named: name that run too")


def _events(run: Path) -> list[dict[str, Any]]:
    return read_events(RunFolder(run).events)


def _same(experiment: Experiment, amounts: Sequence[int]) -> int:
    if min(amounts) != max(amounts):
        raise FlgenError(
            f"the seeds of {experiment.label} have {min(amounts)} to {max(amounts)} samples: seeds of one folder "
            "differ in nothing else"
        )
    return amounts[0]
