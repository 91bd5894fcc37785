"""`flgen plot prism`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import (
    Experiment,
    Point,
    common_rounds,
    course,
    curve,
    find_experiments,
    outcomes,
    over_rounds,
    words,
    write_points,
)
from flgen.commands.plot.tables import write_csv
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import read_metrics
from flgen.experiment.runs import RunFolder
from flgen.figures.fid_bytes import Spending, draw_fid_bytes
from flgen.figures.layer_density import draw_layer_density
from flgen.figures.mask_drift import draw_mask_drift
from flgen.figures.samples_side_by_side import SampleSheet, draw_samples_side_by_side, read_sheet
from flgen.metrics.over_seeds import Spread, over_seeds

MEGABYTE = 1e6
SENT = "comm/up_bytes"
DRIFT = "mask/drift"
DENSITY = "mask/density/"
COUNTS = {"comm/up_bytes_packed": "one bit per weight", "comm/up_bytes_authors": "as the authors count"}
"""Columns that count the bytes sent up otherwise, and what they are called in the figure."""

MEASURED = "choose runs that were evaluated (--evaluation.every), or another --metric"
MASKED = "only runs of methods that exchange masks, such as Prism, have it"

Read = TypeVar("Read")


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw quality over bytes, mask distance, density per layer and samples of some runs; return the files."""
    parser = KindParser(
        "prism",
        "Draw the FID of generators over the bytes sent up, the distance of their masks over rounds, the density of "
        "each layer, and their samples side by side. A run without masks is in the first figure and the last.",
    )
    parser.add_runs()
    parser.add_labels("Names, one per RUN; runs of the same name are repetitions of each other.")
    parser.add_argument("--metric", help="The column of metrics.csv to draw; by default the first FID that most have.")
    parser.add_argument("--paths", action="store_true", help="Draw the way to each FID too, round by round.")
    parser.add_argument("--output", metavar="FOLDER", default=".", help="Where the figures go (here by default).")
    options = parser.parse(arguments)
    folder = _folder(options.output)
    experiments = _experiments(options.runs, options.labels)
    metric = _first_fid(experiments) if options.metric is None else options.metric
    left_out: list[str] = []
    files = [
        *_draw_fid_bytes(
            _masked_first(experiments), metric, folder / "prism_fid_bytes.png", left_out, paths=options.paths
        ),
        *_draw_drift(experiments, metric, folder / "prism_drift.png", left_out),
        *_draw_density(experiments, folder / "prism_density.png", left_out),
        *_draw_samples(experiments, metric, folder / "prism_samples.png", left_out),
    ]
    if not files:
        raise FlgenError(f"none of the figures can be drawn: {left_out[0]}")
    for line in left_out:
        print(line)
    return tuple(files)


def _folder(output: str) -> Path:
    folder = Path(output)
    if folder.suffix.lower() in (".png", ".svg") or folder.is_file():
        raise UsageError(f"--output {output}: there are several figures; give the folder that they go to")
    return folder


def _experiments(runs: Sequence[str], labels: Sequence[str] | None) -> list[Experiment]:
    """Return the experiments; those of one label are one."""
    found: dict[str, tuple[Path, ...]] = {}
    for one in find_experiments(runs, labels, labels_may_repeat=True):
        found[one.label] = (*found.get(one.label, ()), *one.runs)
    return [Experiment(label, paths) for label, paths in found.items()]


def _first_fid(experiments: Sequence[Experiment]) -> str:
    """Return the first column of an FID that most experiments have: FIDs of two extractors are no match."""
    having: dict[str, int] = {}
    for one in experiments:
        columns = [{name: None for row in _rows(run) for name in row} for run in one.runs]
        for name in columns[0]:
            if name.startswith("fid/") and all(name in others for others in columns):
                having[name] = having.get(name, 0) + 1
    return max(having, key=having.__getitem__, default="fid/...")


def _read(
    figure: Path, experiments: Sequence[Experiment], read: Callable[[Experiment], Read], left_out: list[str]
) -> dict[str, Read]:
    """Return what a figure shows of each experiment, by label, and add a line for each one that it leaves out."""
    found = {}
    for one in experiments:
        try:
            found[one.label] = read(one)
        except FlgenError as error:
            left_out.append(f"{figure.stem} leaves out {one.label}: {error}")
    return found


def _masked_first(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Return the experiments with masks before the others, so that each has the same hue in all figures."""
    return sorted(experiments, key=lambda one: not any(DRIFT in row for row in _rows(one.runs[0])))


def _rows(run: Path) -> list[dict[str, float]]:
    return read_metrics(RunFolder(run).metrics)


def _draw_fid_bytes(
    experiments: Sequence[Experiment], metric: str, output: Path, left_out: list[str], *, paths: bool
) -> list[Path]:
    """Draw FID over uplink bytes, a point per experiment."""
    found = _read(output, experiments, lambda one: _spending(one, metric), left_out)
    if not found:
        return []
    runs = [
        Spending(label, curve(label, [Point(sent / MEGABYTE, spread) for sent, spread in points]), counts)
        for label, (points, counts) in found.items()
    ]
    figures = draw_fid_bytes(runs, output, ylabel=_measure(metric), paths=paths)
    table = output.with_suffix(".csv")
    write_points(table, "uplink_bytes", {label: points for label, (points, _) in found.items()})
    return [*figures, table]


def _spending(experiment: Experiment, metric: str) -> tuple[list[Point], dict[str, float]]:
    """Return a metric over the bytes up so far, and the megabytes up to the last point by other counts."""
    measured = [course(run, metric, MEASURED) for run in experiment.runs]
    outcomes(experiment, metric)  # says which seed is behind the others
    sent = [course(run, SENT, "choose runs of a method with a server") for run in experiment.runs]
    rounds = common_rounds(experiment, measured, metric)
    points = [
        Point(over_seeds([_until(t, one) for one in sent]).mean, over_seeds([found[t] for found in measured]))
        for t in rounds
    ]
    if not points[0].x > 0:
        raise FlgenError(f"{experiment.runs[0]} has sent nothing up by round {rounds[0]}: there is no place for it")
    if not math.isfinite(points[-1].spread.mean):
        raise FlgenError(f"its {metric} is {points[-1].spread.mean} after round {rounds[-1]}: there is no place for it")
    counts = {}
    for column, name in COUNTS.items():
        if all(_has(run, column) for run in experiment.runs):
            otherwise = [_until(rounds[-1], course(run, column)) for run in experiment.runs]
            counts[name] = over_seeds(otherwise).mean / MEGABYTE
    return points, counts


def _until(t: int, bytes: Mapping[int, float]) -> float:
    """Return the bytes of rounds 1 to t."""
    return sum(count for round, count in bytes.items() if round <= t)


def _has(run: Path, column: str) -> bool:
    """Return whether every round of a run has a column."""
    return all(column in row for row in _rows(run) if SENT in row)


def _draw_drift(experiments: Sequence[Experiment], metric: str, output: Path, left_out: list[str]) -> list[Path]:
    """Draw lambda over rounds, and the metric below it."""
    named = [Experiment(_with_mada(one), one.runs) for one in experiments]
    drifts = _read(output, named, lambda one: over_rounds(one, DRIFT, MASKED), left_out)
    if not drifts:
        return []
    masked = [one for one in named if one.label in drifts]
    measures = _read(output, masked, lambda one: over_rounds(one, metric, MEASURED), left_out)
    figures = draw_mask_drift(
        [curve(label, points) for label, points in drifts.items()],
        [curve(label, measures.get(label, [])) for label in drifts],
        output,
        ylabel=_measure(metric),
    )
    table = output.with_suffix(".csv")
    rows = [
        (label, name, point.x, *point.spread)
        for name, courses in ((DRIFT, drifts), (metric, measures))
        for label, points in courses.items()
        for point in points
    ]
    write_csv(table, rows, ("run", "metric", "round", "mean", "std", "seeds"))
    return [*figures, table]


def _with_mada(experiment: Experiment) -> str:
    """Return an experiment's name, which says so if MADA is off."""
    folder = RunFolder(experiment.runs[0])
    method = folder.read_config().get("method") if folder.config.is_file() else None
    options = method.get("init_args") if isinstance(method, dict) else None
    off = isinstance(options, dict) and options.get("mada") is False
    return f"{experiment.label} (no MADA)" if off and "mada" not in experiment.label.lower() else experiment.label


def _draw_density(experiments: Sequence[Experiment], output: Path, left_out: list[str]) -> list[Path]:
    """Draw the density of each layer at the last round that has it."""
    found = _read(output, experiments, _densities, left_out)
    if not found:
        return []
    figures = draw_layer_density(found, output)
    table = output.with_suffix(".csv")
    rows = [(label, layer, *spread) for label, layers in found.items() for layer, spread in layers.items()]
    write_csv(table, rows, ("run", "layer", "mean", "std", "seeds"))
    return [*figures, table]


def _densities(experiment: Experiment) -> dict[str, Spread]:
    """Return the density by layer, mean and spread over the seeds."""
    last = [_last_densities(run) for run in experiment.runs]
    rounds = {t for t, _ in last}
    if len(rounds) > 1:
        raise FlgenError(
            f"its seeds have {DENSITY}<layer> up to rounds {' and '.join(map(str, sorted(rounds)))}: continue the "
            "shorter ones with --ckpt_path last"
        )
    layers = [layer for layer in last[0][1] if all(layer in densities for _, densities in last)]
    return {layer: over_seeds([densities[layer] for _, densities in last]) for layer in layers}


def _last_densities(run: Path) -> tuple[int, dict[str, float]]:
    """Return the last round that has densities of layers, and these."""
    for row in reversed(_rows(run)):
        densities = {name.removeprefix(DENSITY): value for name, value in row.items() if name.startswith(DENSITY)}
        if densities:
            return int(row["round"]), densities
    raise FlgenError(f"{RunFolder(run).metrics} has no {DENSITY}<layer>: {MASKED}")


def _draw_samples(experiments: Sequence[Experiment], metric: str, output: Path, left_out: list[str]) -> list[Path]:
    """Draw the last sample grid of each experiment's first run."""
    sheets = _read(output, experiments, lambda one: _sheet(one, metric), left_out)
    return list(draw_samples_side_by_side(list(sheets.values()), output)) if sheets else []


def _sheet(experiment: Experiment, metric: str) -> SampleSheet:
    run = experiment.runs[0]
    grids = {path.stem.removeprefix("round-"): path for path in RunFolder(run).samples.glob("round-*.png")}
    rounds = {int(number): path for number, path in grids.items() if number.isdecimal()}
    if not rounds:
        raise FlgenError(f"{run} has no sample grids (samples/round-*.png): choose a run with the callback SampleGrids")
    t = max(rounds)
    read_sheet(rounds[t])  # a damaged one is left out
    value = {int(row["round"]): row[metric] for row in _rows(run) if metric in row}.get(t)
    note = [run.name] if len(experiment.runs) > 1 else []
    note += [f"round {t}"] + ([] if value is None else [f"{_measure(metric)} {value:.4g}"])
    return SampleSheet(experiment.label, rounds[t], ", ".join(note))


def _measure(metric: str) -> str:
    """Return a metric as it stands beside an axis: `fid/digits` is "FID (digits)"."""
    extractor = metric.removeprefix("fid/")
    return words(metric) if extractor == metric else f"FID ({extractor})"
