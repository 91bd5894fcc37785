"""`flgen plot communication`."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import (
    Experiment,
    Point,
    common_rounds,
    course,
    curve,
    find_experiments,
    outcomes,
    words,
    write_points,
)
from flgen.commands.plot.tables import markdown_table, write_csv
from flgen.errors import FlgenError, UsageError
from flgen.experiment.plain_values import json_value
from flgen.experiment.records import read_ledger, read_metrics, read_partition
from flgen.figures.communication_curves import draw_communication
from flgen.figures.paper import figure_files
from flgen.metrics.communication import (
    SECURE_AGGREGATION_PHASES,
    CommunicationToTarget,
    OneOffCost,
    communication_to_target,
    label_union_cost,
)
from flgen.metrics.over_seeds import Spread, over_seeds

MEGABYTE = 1e6


@dataclass(frozen=True)
class Cost:
    """What it took the seeds of one experiment to reach the target.

    Args:
        experiment: Which.
        seeds: One per run.
    """

    experiment: Experiment
    seeds: Sequence[CommunicationToTarget]

    @property
    def reached(self) -> int:
        """How many seeds reached it."""
        return sum(seed.round is not None for seed in self.seeds)

    @property
    def round(self) -> Spread:
        """The round in which they did; inf as soon as one did not."""
        return over_seeds([math.inf if seed.round is None else seed.round for seed in self.seeds])

    @property
    def bytes(self) -> Spread:
        """The bytes up to it, without those of secure aggregation."""
        return over_seeds([seed.bytes for seed in self.seeds])

    @property
    def secure_aggregation_bytes(self) -> Spread:
        """The bytes of secure aggregation up to it."""
        return over_seeds([seed.secure_aggregation_bytes for seed in self.seeds])

    @property
    def scalars(self) -> Spread | None:
        """The numbers up to it, None if a run has not counted them."""
        counts = [seed.scalars for seed in self.seeds if seed.scalars is not None]
        return over_seeds(counts) if len(counts) == len(self.seeds) else None


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw accuracy over bytes, print what each run needed to reach a target, and return the files."""
    parser = KindParser("communication", "Draw accuracy over what was sent and received, and the way to a target.")
    parser.add_runs()
    parser.add_argument(
        "--target",
        type=float,
        help="The accuracy to reach, from 0 to 1; by default the lowest final one among the runs.",
    )
    parser.add_argument(
        "--label_union", metavar="FILE", help="The labels.json of `flgen labels`, whose one-off cost is printed too."
    )
    parser.add_labels()
    parser.add_metric()
    parser.add_output("communication.png")
    options = parser.parse(arguments)
    if options.target is not None and not 0 <= options.target <= 1:
        raise UsageError(f"--target is {options.target:g}: give a share from 0 to 1, such as 0.6 for 60 %")
    png, _ = figure_files(options.output)
    experiments = find_experiments(options.runs, options.labels)
    courses = {one.label: _over_bytes(one, options.metric) for one in experiments}
    target = _weakest(experiments, options.metric) if options.target is None else options.target
    costs = [_cost(one, target, options.metric) for one in experiments]
    one_off = [] if options.label_union is None else _label_union(options.label_union, experiments)
    figures = draw_communication(
        [
            curve(label, [Point(point.x / MEGABYTE, point.spread) for point in points])
            for label, points in courses.items()
        ],
        options.output,
        ylabel=words(options.metric),
        target=target,
        reached=[cost.bytes.mean / MEGABYTE for cost in costs],
    )
    tables = (png.with_suffix(".csv"), png.with_name(f"{png.stem}-target.csv"))
    write_points(tables[0], "bytes", courses)
    _write_costs(tables[1], costs, target)
    print(f"until {options.metric} is {target:g}:")
    print(_cost_table(costs), end="")
    for cost in one_off:
        print(f"once, in no row: {cost.name}, {cost.bytes} bytes, {cost.scalars} scalars")
    return (*figures, *tables)


def _over_bytes(experiment: Experiment, metric: str) -> list[Point]:
    """Return accuracy over the bytes up and down so far, both means over the seeds of the rounds they all have."""
    courses = [course(run, metric) for run in experiment.runs]
    traffic = [_Traffic.read(run) for run in experiment.runs]
    return [
        Point(over_seeds([carried.until(t) for carried in traffic]).mean, over_seeds([found[t] for found in courses]))
        for t in common_rounds(experiment, courses, metric)
    ]


@dataclass(frozen=True)
class _Traffic:
    """The bytes of a run so far, without those that secure aggregation alone is the reason for, round by round."""

    rounds: list[int]
    totals: list[int]

    @classmethod
    def read(cls, run: Path) -> _Traffic:
        rows = read_ledger(run / "ledger.csv")
        if not rows:
            raise FlgenError(
                f"{run / 'ledger.csv'} is missing or empty: choose runs of `flgen fit` that exchange something"
            )
        found: dict[int, int] = {}
        for row in rows:
            counts = row["phase"] not in SECURE_AGGREGATION_PHASES
            found[row["round"]] = found.get(row["round"], 0) + counts * row["bytes"]
        rounds = sorted(found)
        return cls(rounds, list(accumulate(found[t] for t in rounds)))

    def until(self, t: int) -> int:
        """Return the bytes of rounds 1 to t."""
        place = bisect_right(self.rounds, t)
        return self.totals[place - 1] if place else 0


def _weakest(experiments: Sequence[Experiment], metric: str) -> float:
    """Return the target where none is given: what the weakest of the runs reaches in the end (gptfl.md, 7.3)."""
    return min(over_seeds([outcome.final for outcome in outcomes(one, metric)]).mean for one in experiments)


def _cost(experiment: Experiment, target: float, metric: str) -> Cost:
    return Cost(
        experiment,
        [
            communication_to_target(
                read_metrics(run / "metrics.csv"), read_ledger(run / "ledger.csv"), target, metric=metric
            )
            for run in experiment.runs
        ],
    )


def _label_union(file: str, experiments: Sequence[Experiment]) -> list[OneOffCost]:
    """Return what the label union has cost, once for each number of clients among the runs."""
    try:
        union = json_value(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--label_union {file} cannot be read: give the labels.json of `flgen labels`") from error
    if not isinstance(union, dict):
        raise UsageError(f"--label_union {file}: this is no labels.json of `flgen labels`")
    clients = {len(read_partition(run / "partition.csv")[1]) for one in experiments for run in one.runs}
    try:
        return [label_union_cost(union, count) for count in sorted(clients)]
    except FlgenError as error:
        raise UsageError(f"--label_union {file}: {error}") from error


def _write_costs(path: Path, costs: Sequence[Cost], target: float) -> None:
    rows = []
    for cost in costs:
        scalars = "" if cost.scalars is None else cost.scalars.mean
        protection = cost.secure_aggregation_bytes.mean
        reached = (len(cost.seeds), cost.reached, cost.round.mean, cost.bytes.mean, cost.bytes.std, protection, scalars)
        rows.append((cost.experiment.label, target, *reached))
    header = ("run", "target", "seeds", "reached", "round", "bytes", "bytes_std", "secure_aggregation_bytes", "scalars")
    write_csv(path, rows, header)


def _cost_table(costs: Sequence[Cost]) -> str:
    rows = []
    for cost in costs:
        bytes = cost.bytes
        spread = f" ± {bytes.std / MEGABYTE:.3f}" if math.isfinite(bytes.std) else ""
        protection = cost.secure_aggregation_bytes.mean / MEGABYTE
        rows.append(
            (
                cost.experiment.label,
                f"{cost.reached} of {len(cost.seeds)}",
                f"{cost.round.mean:g}",
                f"{bytes.mean / MEGABYTE:.3f}{spread}",
                f"{protection:.3f}",
                "not counted" if cost.scalars is None else f"{cost.scalars.mean:.0f}",
            )
        )
    return markdown_table(("run", "reached", "round", "MB", "MB of secure aggregation", "scalars"), rows)
