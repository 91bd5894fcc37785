"""What the page knows of a run: everything its folder says, read once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError
from flgen.experiment.records import read_clients, read_events, read_ledger, read_metrics, read_partition
from flgen.experiment.runs import RunFolder

if TYPE_CHECKING:
    import numpy as np

Rows = Sequence[Mapping[str, Any]]
Columns = dict[str, tuple[list[int], list[float]]]

MOST_OPTIONS = 2000  # of a configuration; one whose nodes refer to each other can have any number
DEEPEST_OPTION = 12
COUNTED = ("round", "client")
MOST_ROUNDS = 2**31 - 1
LARGEST_COUNT = 2**63 - 1
LARGEST_DRAWN = 1e300


@dataclass(frozen=True)
class ReportedRun:
    """A run as its folder describes it.

    Args:
        label: Its name on the page.
        folder: Where it lies.
        config: config.yaml; empty if there is none.
        metrics: Rows of metrics.csv.
        ledger: Rows of ledger.csv.
        clients: Rows of clients.csv.
        events: Those of events.jsonl.
        partition: Class names, and int64 (clients, classes) of partition.csv; None if there is none.
    """

    label: str
    folder: RunFolder
    config: Mapping[str, Any]
    metrics: Rows
    ledger: Rows
    clients: Rows
    events: Rows
    partition: tuple[list[str], np.ndarray] | None

    @cached_property
    def columns(self) -> Columns:
        """Rounds and values by metric, in the order in which the metrics appear first."""
        found: Columns = {}
        for row in self.metrics:
            for name, value in row.items():
                if name != "round":
                    rounds, values = found.setdefault(name, ([], []))
                    rounds.append(int(row["round"]))
                    values.append(value)
        return found

    @property
    def last_round(self) -> int:
        """The last round that was written down; 0 before the first."""
        return max((int(row["round"]) for rows in (self.metrics, self.ledger) for row in rows[-1:]), default=0)

    @property
    def unit(self) -> str:
        """What a row of metrics.csv stands for: "round", or "epoch" where the server alone has trained."""
        return "epoch" if any("epoch" in event for event in self.events) else "round"

    @property
    def client_count(self) -> int | None:
        """How many clients there are; None if there are none."""
        if self.partition is not None:
            return len(self.partition[1])
        clients = option(self.config, "partition", "init_args", "clients")
        return clients if isinstance(clients, int) and not isinstance(clients, bool) and clients > 0 else None


@dataclass(frozen=True)
class ReportedExperiment:
    """One configuration, run once or with several seeds.

    Args:
        label: Its name on the page.
        number: Its place among all, from 0: the colour and the dashes of its curves.
        runs: At least one.
    """

    label: str
    number: int
    runs: tuple[ReportedRun, ...]


def read_experiments(folders: Mapping[str, Sequence[Path]]) -> list[ReportedExperiment]:
    """Read everything that some run folders hold.

    Args:
        folders: By the experiment's name, the run folder, or one per seed.

    Raises:
        FlgenError: A file is damaged.
    """
    return [
        ReportedExperiment(
            label,
            number,
            tuple(_read_run(label if len(runs) == 1 else f"{label}/{run.name}", RunFolder(run)) for run in runs),
        )
        for number, (label, runs) in enumerate(folders.items())
    ]


def all_runs(experiments: Sequence[ReportedExperiment]) -> list[ReportedRun]:
    """Return the runs of all experiments, in their order."""
    return [run for experiment in experiments for run in experiment.runs]


def option(config: Any, *names: str) -> Any:
    """Return an option of a configuration by the keys that lead to it; None where one is missing."""
    for name in names:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def class_name(given: Any) -> str | None:
    """Return the short name of a class that a configuration has chosen, several of them joined; None without."""
    if isinstance(given, list):
        names = [name for name in map(class_name, given) if name]
        return ", ".join(names) or None
    path = option(given, "class_path")
    return path.rpartition(".")[2] if isinstance(path, str) else None


def typed_options(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a configuration as they are typed, `--method.mada`, with their values as text."""
    found: dict[str, str] = {}
    for name, value in _flat(config, "-", 0):
        if len(found) == MOST_OPTIONS:
            break
        found[name] = value
    return found


def _flat(value: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value and depth < DEEPEST_OPTION:
        for key, inner in value.items():
            below = name if key in ("class_path", "init_args") else f"{name}{'-' if name == '-' else '.'}{key}"
            yield from _flat(_short(inner) if key == "class_path" else inner, below, depth + 1)
    elif isinstance(value, list) and depth < DEEPEST_OPTION and any(isinstance(one, Mapping) for one in value):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{place}]", depth + 1)
    else:
        yield name, _text(value)


def _short(path: Any) -> Any:
    return path.removeprefix("flgen.") if isinstance(path, str) else path


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and not any(isinstance(one, (list, Mapping)) for one in value):
        return f"[{', '.join(map(_text, value[:MOST_OPTIONS]))}]"
    return "…" if isinstance(value, (list, Mapping)) and value else str(value)


def _read_run(label: str, folder: RunFolder) -> ReportedRun:
    return ReportedRun(
        label,
        folder,
        config=folder.read_config() if folder.config.is_file() else {},
        metrics=_table(read_metrics(folder.metrics), folder.metrics, "round"),
        ledger=_table(
            read_ledger(folder.ledger), folder.ledger, "round", "phase", "link", "messages", "bytes", "wire_bytes"
        ),
        clients=_table(read_clients(folder.clients), folder.clients, "round", "client"),
        events=_events(read_events(folder.events), folder.events),
        partition=read_partition(folder.partition) if folder.partition.is_file() else None,
    )


def _table(rows: Rows, path: Path, *columns: str) -> Rows:
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in columns if name not in row]
        if lacking:
            raise FlgenError(f"{path} is damaged: row {number} has no {lacking[0]}; mend it or move it away")
        wrong = [name for name, value in row.items() if not _is_possible(name, value)]
        if wrong:
            raise FlgenError(f"{path} is damaged: row {number} has an impossible {wrong[0]}; mend it or move it away")
    return [{name: _drawable(value) for name, value in row.items()} for row in rows]


def _events(events: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    for number, event in enumerate(events, start=1):
        if not _has_possible_counts(event):
            raise FlgenError(f"{path} is damaged: line {number} has an impossible number; mend it or move it away")
    return events


def _has_possible_counts(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_has_possible_counts, value.values()))
    if isinstance(value, list):
        return all(map(_has_possible_counts, value))
    return not isinstance(value, int) or abs(value) <= LARGEST_COUNT


def _drawable(value: Any) -> Any:
    """Return what a run that has diverged holds shortly before infinity as that: sums and bins of it would overflow."""
    return math.copysign(math.inf, value) if isinstance(value, float) and abs(value) > LARGEST_DRAWN else value


def _is_possible(name: str, value: Any) -> bool:
    """Whether a cell can be drawn: integers may be of any length in a file, in an array they may not."""
    if name in COUNTED:
        return isinstance(value, int) and 0 <= value <= MOST_ROUNDS
    return not isinstance(value, int) or abs(value) <= LARGEST_COUNT
