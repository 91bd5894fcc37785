"""`flgen plot costs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import Experiment, find_experiments, method_name
from flgen.commands.plot.tables import markdown_table, write_csv, write_text
from flgen.errors import FlgenError
from flgen.experiment.records import read_ledger, read_metrics
from flgen.figures.cost_bars import Bar, draw_cost_bars
from flgen.figures.paper import figure_files
from flgen.metrics.round_costs import FIRST_COUNTED, DirectionCost, RoundCosts, round_costs

MEGABYTE = 1e6
FLOAT_BYTES = 4

Way = Literal["up", "down"]
WAYS: tuple[Way, ...] = ("up", "down")


@dataclass(frozen=True)
class Cost:
    """What a round of one experiment sends; means over its seeds.

    Args:
        label: Its name.
        method: Of its configuration.
        seeds: What a round of each seed sends.
    """

    label: str
    method: str
    seeds: Sequence[RoundCosts]

    def megabytes(self, way: Way) -> float:
        """Encoded bytes up or down, 10^6."""
        return _mean([getattr(seed, way).bytes for seed in self.seeds]) / MEGABYTE

    def scalars(self, way: Way) -> float | None:
        """The numbers that they encode, None if a seed has not counted them."""
        return _mean_of_known([getattr(seed, way).total for seed in self.seeds])

    def formula(self, way: Way) -> float | None:
        """The numbers by formula, None where there is none."""
        return _mean_of_known([getattr(seed, way).formula for seed in self.seeds])

    def beside(self, way: Way) -> str:
        """What is sent beside the formula: entries by name, or a difference that no entries explain."""
        scalars, formula = self.scalars(way), self.formula(way)
        if scalars is None or formula is None:
            return ""
        ways: list[DirectionCost] = [getattr(seed, way) for seed in self.seeds]
        left_out = [one.beside for one in ways if one.beside is not None]
        if len(left_out) < len(ways):
            return f"{way} {scalars - formula:+.6g}"
        names = dict.fromkeys(name for entries in left_out for name in entries)
        means = {name: _mean([entries.get(name, 0.0) for entries in left_out]) for name in names}
        return ", ".join(f"{name.replace('_', ' ')} {mean:.6g} {way}" for name, mean in means.items())

    @property
    def secure_aggregation(self) -> float:
        """Megabytes of keys, shares and answers."""
        return _mean([seed.secure_aggregation_bytes for seed in self.seeds]) / MEGABYTE

    @property
    def once(self) -> float:
        """Bytes sent once."""
        return _mean([seed.once_bytes for seed in self.seeds])


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw what a round of some runs sends up and down, print it beside the formula, and return the files."""
    parser = KindParser(
        "costs",
        "Draw what a round of some runs sends up and down, all clients together, beside their methods' formulas.",
    )
    parser.add_runs()
    parser.add_labels()
    parser.add_output("costs.png")
    options = parser.parse(arguments)
    png, _ = figure_files(options.output)
    costs = [cost_of(one) for one in find_experiments(options.runs, options.labels)]
    figures = draw_cost_bars(
        [cost.label for cost in costs], {way: [_bar(cost, way) for cost in costs] for way in WAYS}, options.output
    )
    csv, markdown = png.with_suffix(".csv"), png.with_suffix(".md")
    _write(csv, costs)
    text = cost_table(costs)
    write_text(markdown, text)
    print(f"a round, all clients together, mean from round {FIRST_COUNTED} on:")
    print(text, end="")
    return (*figures, csv, markdown)


def cost_of(experiment: Experiment) -> Cost:
    """Return what a round of an experiment sends.

    Raises:
        FlgenError: A run has no server, or one round alone.
    """
    seeds = []
    for run in experiment.runs:
        try:
            seeds.append(round_costs(read_metrics(run / "metrics.csv"), read_ledger(run / "ledger.csv")))
        except FlgenError as error:
            raise FlgenError(f"{run}: {error}") from error
    return Cost(experiment.label, method_name(experiment), seeds)


def cost_table(costs: Sequence[Cost]) -> str:
    """Return the table, Markdown: numbers and formula each way, what is beside it, megabytes, and bytes sent once."""
    protected = any(cost.secure_aggregation for cost in costs)
    header = ["run", "method"]
    header += ["scalars up", "formula", "scalars down", "formula", "beside the formula", "MB up", "MB down"]
    header += ["MB of secure aggregation"] * protected + ["bytes once"]
    rows = []
    for cost in costs:
        row = [cost.label, cost.method]
        for way in WAYS:
            row += [_number(cost.scalars(way), "not counted"), _number(cost.formula(way), "none")]
        row.append("; ".join(filter(None, (cost.beside(way) for way in WAYS))) or "nothing")
        row += [f"{cost.megabytes(way):.4f}" for way in WAYS]
        row += [f"{cost.secure_aggregation:.4f}"] * protected + [f"{cost.once:.0f}"]
        rows.append(row)
    return markdown_table(header, rows)


def _bar(cost: Cost, way: Way) -> Bar:
    formula = cost.formula(way)
    return Bar(cost.megabytes(way), None if formula is None else formula * FLOAT_BYTES / MEGABYTE)


def _write(path: Path, costs: Sequence[Cost]) -> None:
    header = ["run", "method", "seeds"]
    header += [f"{way}_{name}" for way in WAYS for name in ("scalars", "formula", "bytes", "beside_formula")]
    rows = []
    for cost in costs:
        row: list[str | float] = [cost.label, cost.method, len(cost.seeds)]
        for way in WAYS:
            numbers = [cost.scalars(way), cost.formula(way), cost.megabytes(way) * MEGABYTE]
            row += ["" if number is None else number for number in numbers]
            row.append(cost.beside(way))
        rows.append([*row, cost.secure_aggregation * MEGABYTE, cost.once])
    write_csv(path, rows, [*header, "secure_aggregation_bytes", "once_bytes"])


def _number(value: float | None, missing: str) -> str:
    if value is None:
        return missing
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None
