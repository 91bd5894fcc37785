"""Which runs need not be run again: those whose folder holds the same run, ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flgen.data import LocalSplit
from flgen.errors import FlgenError
from flgen.experiment.config import describe
from flgen.experiment.records import read_events
from flgen.experiment.runs import RunFolder

MAY_DIFFER = ("data.init_args.root", "data.init_args.download")
"""Options of an experiment's sections that say where things lie, not what they are."""


def is_finished(asked: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether a folder's run has reached its last round, or the last one that its privacy budget pays for.

    Args:
        asked: The resolved configuration of the run that is wanted there.
        run_dir: Its folder, which need not exist.

    Raises:
        FlgenError: The folder holds another run.
    """
    folder = RunFolder(run_dir)
    if not folder.config.is_file():
        return False
    if differing := list(differing_options(folder.read_config(), asked)):
        raise FlgenError(
            f"{folder.config} is of another experiment (different {', '.join(differing[:3])}): choose another "
            f"--run_dir, or remove {run_dir} to begin anew"
        )
    events = read_events(folder.events)
    rounds = asked["trainer"]["rounds"]
    ends = [event for event in _since_taken_up(events) if event["event"] == "end"]
    return any(event.get("round", 0) >= rounds for event in ends) or ended_by_budget(events)


def ended_by_budget(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run, since it was last taken up, has come to the end of its privacy budget and has ended there."""
    names = [event["event"] for event in _since_taken_up(events)]
    return "budget" in names and names[-1] == "end"


def _since_taken_up(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the events since a run was last started or taken up."""
    taken_up = [number for number, event in enumerate(events) if event["event"] in ("start", "resume")]
    return events[max(taken_up, default=0) :]


def differing_options(written: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options in which two configurations describe different runs.

    Args:
        written: A run's config.yaml.
        asked: The configuration in question; its nulls of the model stand for what the data set says.
    """
    if written.get("seed_everything") != asked["seed_everything"]:
        yield "seed_everything"
    if _partition_seed(written) != _partition_seed(asked):
        yield "partition_seed"
    written = {"split": describe(LocalSplit()), **written}  # of which older runs say nothing
    for section in ("model", "method", "data", "partition", "split", "initial_weights"):
        theirs, ours = dict(_flat(written.get(section), section)), dict(_flat(asked.get(section), section))
        for name in dict.fromkeys([*theirs, *ours]):
            left_to_the_data = section == "model" and ours.get(name) is None
            if theirs.get(name) != ours.get(name) and name not in MAY_DIFFER and not left_to_the_data:
                yield name
    theirs = dict(_flat(written.get("trainer"), "trainer"))
    for option in ("clients_per_round", "participation", "precision"):
        if theirs.get(f"trainer.{option}") != asked["trainer"].get(option):
            yield f"trainer.{option}"


def _partition_seed(config: Mapping[str, Any]) -> Any:
    divided = config.get("partition_seed")
    return config.get("seed_everything") if divided is None else divided


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}")
    else:
        yield prefix, value
