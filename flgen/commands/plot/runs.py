"""The run folders that a figure is drawn from, the repetitions among them, and what they measured."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flgen.commands.plot.tables import write_csv
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import read_metrics
from flgen.experiment.runs import RunFolder
from flgen.figures.banded_curves import Curve
from flgen.metrics.over_rounds import Chosen, FinalAndBest, chosen_on_validation, final_and_best
from flgen.metrics.over_seeds import Spread, over_seeds

SEEDS = "seed-*"


@dataclass(frozen=True)
class Experiment:
    """One configuration, run once or with several seeds.

    Args:
        label: Its name in the figure.
        runs: The run folder, or one per seed.
    """

    label: str
    runs: tuple[Path, ...]


class Point(NamedTuple):
    """A point of a curve.

    Args:
        x: Where: a round, a number of bytes, of clients, of samples.
        spread: Mean and sample standard deviation over the seeds.
    """

    x: float
    spread: Spread


def run_folder(path: str | Path) -> Path:
    """Return a run's folder, after making sure that it is one.

    Raises:
        FlgenError: It is not.
    """
    run = Path(path)
    if not run.is_dir():
        raise FlgenError(f"{run}: there is no such folder; give a run folder, such as runs/default")
    if not is_run(run):
        raise FlgenError(
            f"{run} is no run folder (it has neither config.yaml nor metrics.csv): give one, such as runs/default"
        )
    return run


def find_experiments(
    paths: Sequence[str], labels: Sequence[str] | None = None, *, labels_may_repeat: bool = False
) -> list[Experiment]:
    """Return the experiments of some run folders, in the order in which they are named.

    Folders called `seed-*` of one parent are repetitions of one experiment, named after the parent; the parent itself
    stands for all of its `seed-*` folders.

    Args:
        paths: The folders as typed.
        labels: One name per experiment; None takes the folders' names, and where these are the same, what was typed.
        labels_may_repeat: Whether two experiments may have the same label.

    Raises:
        UsageError: A run is named twice, or a label; or there is another number of labels.
        FlgenError: A folder is no run folder.
    """
    found: dict[Path, list[Path]] = {}
    typed: dict[Path, str] = {}
    for path in paths:
        folder = Path(path)
        seeds = [run for run in sorted(folder.glob(SEEDS), key=_seed) if is_run(run)]
        runs = seeds or [run_folder(folder)]
        named = folder.parent if not seeds and folder.resolve().match(SEEDS) else folder
        known = found.setdefault(named.resolve(), [])
        typed.setdefault(named.resolve(), str(named))
        for run in runs:
            if any(run.samefile(other) for other in known):
                raise UsageError(f"{run} is named twice: name every run once")
            known.append(run)
    if labels is not None and len(labels) != len(found):
        raise UsageError(
            f"--labels has {len(labels)} of the {len(found)} names that are needed: give one per RUN; the seeds of one "
            "folder are one"
        )
    if labels is not None and not labels_may_repeat and (twice := [name for name in labels if labels.count(name) > 1]):
        raise UsageError(f"--labels has {twice[0]} twice: give every RUN a name of its own")
    own = [folder.name for folder in found]
    names = labels or [name if own.count(name) == 1 else typed[folder] for name, folder in zip(own, found, strict=True)]
    return [Experiment(name, tuple(runs)) for name, runs in zip(names, found.values(), strict=True)]


def course(run: Path, metric: str, remedy: str | None = None) -> dict[int, float]:
    """Return a metric of a run by round.

    Args:
        run: The run folder.
        metric: A column of metrics.csv.
        remedy: What to do if there is none; None names the nearest column.

    Raises:
        FlgenError: The run does not have it.
    """
    rows = read_metrics(run / "metrics.csv")
    found = {int(row["round"]): row[metric] for row in rows if metric in row}
    if not found:
        names = list(dict.fromkeys(name for row in rows for name in row if name != "round"))
        close = difflib.get_close_matches(metric, names, n=1)
        nearest = f"--metric {close[0]} is there" if close else "choose a run that measures it, or another --metric"
        raise FlgenError(f"{run / 'metrics.csv'} has no {metric}: {remedy or nearest}")
    return found


def common_rounds(experiment: Experiment, courses: Sequence[Mapping[int, float]], metric: str) -> list[int]:
    """Return the rounds in which every seed of an experiment has a metric, ascending.

    Raises:
        FlgenError: There is none.
    """
    rounds = sorted(set.intersection(*(set(found) for found in courses)))
    if not rounds:
        raise FlgenError(f"the seeds of {experiment.label} have {metric} in no common round: repeat one of them")
    return rounds


def over_rounds(experiment: Experiment, metric: str, remedy: str | None = None) -> list[Point]:
    """Return mean and spread of a metric over an experiment's seeds, in the rounds in which all of them have it.

    Raises:
        FlgenError: A run does not have it, or they have it in no common round.
    """
    courses = [course(run, metric, remedy) for run in experiment.runs]
    rounds = common_rounds(experiment, courses, metric)
    return [Point(t, over_seeds([found[t] for found in courses])) for t in rounds]


def outcomes(experiment: Experiment, metric: str) -> list[FinalAndBest]:
    """Return the final and the best value of a metric, one per seed.

    Raises:
        FlgenError: A run does not have it, or the seeds were last measured after different rounds.
    """
    found = []
    for run in experiment.runs:
        course(run, metric)  # says which run lacks it
        found.append(final_and_best(read_metrics(run / "metrics.csv"), metric))
    last = [outcome.final_round for outcome in found]
    if min(last) != max(last):
        behind = experiment.runs[last.index(min(last))]
        raise FlgenError(
            f"{behind} has {metric} up to round {min(last)}, another seed up to round {max(last)}: continue it with "
            "--ckpt_path last, or leave it out"
        )
    return found


def chosen_outcomes(experiment: Experiment, metric: str) -> list[Chosen] | None:
    """Return a metric at the round that validation samples choose, one per seed; None if a seed has no such samples."""
    found = [chosen_on_validation(read_metrics(run / "metrics.csv"), metric) for run in experiment.runs]
    chosen = [one for one in found if one is not None]
    return chosen if len(chosen) == len(found) else None


def curve(label: str, points: Sequence[Point]) -> Curve:
    """Return points as a curve to be drawn."""
    import numpy as np

    columns = np.array([(point.x, point.spread.mean, point.spread.std) for point in points], dtype=np.float64)
    x, mean, std = columns.reshape(-1, 3).T
    return Curve(label, x, mean, std)


def write_points(path: Path, x: str, courses: Mapping[str, Sequence[Point]]) -> None:
    """Write curves as a CSV: run, x, mean, sample standard deviation, seeds.

    Args:
        path: The file.
        x: Name of the second column.
        courses: The points by the name of the curve.

    Raises:
        FlgenError: It cannot be written.
    """
    rows = [(label, point.x, *point.spread) for label, points in courses.items() for point in points]
    write_csv(path, rows, ("run", x, "mean", "std", "seeds"))


def method_name(experiment: Experiment) -> str:
    """Return the method of an experiment, and whether it starts from given weights, as a name for a legend."""
    run = experiment.runs[0]
    name = short_class(run, "method")
    return name if RunFolder(run).read_config().get("initial_weights") is None else f"{name}, pre-trained"


def short_class(run: Path, key: str) -> str:
    """Return the name of the class that a run's configuration has for a key, without its module.

    Raises:
        FlgenError: It has none.
    """
    given = RunFolder(run).read_config().get(key)
    if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
        raise FlgenError(f"{RunFolder(run).config} names no {key}: choose another run")
    path: str = given["class_path"]
    return path.rpartition(".")[2]


def words(metric: str) -> str:
    """Return what stands beside an axis for a metric: `test/accuracy` is "test accuracy"."""
    return metric.replace("/", " ").replace("_", " ")


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run writes."""
    return (folder / "config.yaml").is_file() or (folder / "metrics.csv").is_file()


def _seed(run: Path) -> tuple[int, str]:
    number = run.name.removeprefix("seed-")
    return int(number) if number.isdecimal() else 0, number
