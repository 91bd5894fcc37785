"""`flgen plot participants`."""

from __future__ import annotations

from pathlib import Path

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import (
    Experiment,
    Point,
    course,
    curve,
    find_experiments,
    method_name,
    outcomes,
    words,
    write_points,
)
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import read_partition
from flgen.experiment.runs import RunFolder
from flgen.federation.clients import cohort_size
from flgen.figures.marked_curves import draw_marked_curves
from flgen.figures.paper import figure_files
from flgen.metrics.over_seeds import Spread, over_seeds


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the accuracy after a budget of rounds against the clients per round; return the files."""
    parser = KindParser("participants", "Draw the accuracy after the last round against the clients per round.")
    parser.add_runs()
    parser.add_argument(
        "--round", type=int, help="The budget of rounds; by default the last one, which must be the same for all runs."
    )
    parser.add_labels("Names of the curves, one per RUN, the same for those of one curve; the methods' by default.")
    parser.add_metric()
    parser.add_output("participants.png")
    options = parser.parse(arguments)
    png, _ = figure_files(options.output)
    found = find_experiments(options.runs, options.labels, labels_may_repeat=True)
    _check_budget(found, options.metric, options.round)
    courses: dict[str, list[Point]] = {}
    for one in found:
        label = one.label if options.labels else method_name(one)
        size = _clients_per_round(one)
        points = courses.setdefault(label, [])
        if any(point.x == size for point in points):
            raise UsageError(
                f"{one.runs[0]} is the second run of {label} with {size} clients per round: tell the two apart by "
                "--labels, or leave one out"
            )
        points.append(Point(size, _accuracy(one, options.metric, options.round)))
    for points in courses.values():
        points.sort(key=lambda point: point.x)
    figures = draw_marked_curves(
        [curve(label, points) for label, points in courses.items()],
        options.output,
        xlabel="clients per round",
        ylabel=words(options.metric),
    )
    table = png.with_suffix(".csv")
    write_points(table, "clients_per_round", courses)
    return (*figures, table)


def _check_budget(experiments: list[Experiment], metric: str, round: int | None) -> None:
    """Refuse to compare runs of different lengths, unless a round is given."""
    if round is not None:
        return
    lengths = {one.runs[0]: outcomes(one, metric)[0].final_round for one in experiments}
    shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    if lengths[shortest] != lengths[longest]:
        raise UsageError(
            f"{shortest} ends after round {lengths[shortest]}, {longest} after round {lengths[longest]}: give the "
            f"budget, as in --round {lengths[shortest]}"
        )


def _accuracy(experiment: Experiment, metric: str, round: int | None) -> Spread:
    if round is None:
        return over_seeds([outcome.final for outcome in outcomes(experiment, metric)])
    values = []
    for run in experiment.runs:
        found = course(run, metric)
        if round not in found:
            raise FlgenError(
                f"{run / 'metrics.csv'} has no {metric} after round {round}: give --round a round in which all runs "
                "were evaluated"
            )
        values.append(found[round])
    return over_seeds(values)


def _clients_per_round(experiment: Experiment) -> int:
    """Return |S|, which is the same for all seeds.

    Raises:
        FlgenError: It is not.
    """
    sizes = {run: _cohort(run) for run in experiment.runs}
    if len(set(sizes.values())) > 1:
        raise FlgenError(
            f"the seeds of {experiment.label} have {' and '.join(map(str, sorted(set(sizes.values()))))} clients per "
            "round: seeds of one folder differ in nothing else"
        )
    return next(iter(sizes.values()))


def _cohort(run: Path) -> int:
    folder = RunFolder(run)
    trainer = folder.read_config().get("trainer")
    if not isinstance(trainer, dict) or "clients_per_round" not in trainer:
        raise FlgenError(f"{folder.config} has no trainer.clients_per_round: choose a run of `flgen fit`")
    size: int | None = trainer["clients_per_round"]
    if size is not None:
        return size
    clients, share = len(read_partition(folder.partition)[1]), trainer.get("participation")
    return clients if share is None else cohort_size(clients, share)
