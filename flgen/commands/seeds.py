"""`flgen fit --seeds`: one experiment with several seeds, each a run of its own, and what they gave together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flgen.commands.child_process import has_checkpoint, remove_unstarted, run_flgen
from flgen.data import LocalSplit
from flgen.errors import FlgenError, UsageError
from flgen.experiment.config import Configuration, describe
from flgen.experiment.records import read_events, read_metrics
from flgen.experiment.runs import RunFolder
from flgen.experiment.summary import describe_spread, summarise, write_summary
from flgen.metrics.over_rounds import headline

OPTIONS: dict[str, dict[str, Any]] = {
    "seed_index": {
        "type": int | None,
        "help": "Run this one of --seeds alone, counted from 0: for array jobs.",
    },
}

WHICH_ROUND = {
    "final": "",
    "validated": ", the round of each that validation samples choose",
    "best": ", the best round of each",
}

MAY_DIFFER = ("data.init_args.root", "data.init_args.download")
"""Options of an experiment's sections that say where things lie, not what they are."""


def run_seeds(configuration: Configuration, arguments: Sequence[str]) -> int:
    """Run every seed that is not finished, each in a fresh process, then summarise all; return the exit status.

    Args:
        configuration: Of the whole command.
        arguments: What was typed after `flgen fit`; every seed's process is given the same and its index.
    """
    _check(configuration)
    _check_alone()
    seeds, folder = configuration.values.seeds, Path(configuration.values.run_dir)
    if len(seeds) > 1 and configuration.values.method.init_args.get("privacy") is not None:
        print(
            f"flgen: --seeds {seeds}: {len(seeds)} runs release what the same records say, and the epsilon of each is "
            "of that run alone; together they spend more",
            file=sys.stderr,
            flush=True,
        )
    for index, seed in enumerate(seeds):
        run_dir = _run_dir(folder, seed)
        if _is_finished(configuration, run_dir):
            print(f"seed {seed}: done before ({run_dir})", flush=True)
            continue
        remove_unstarted(run_dir)
        print(f"seed {seed} ({index + 1} of {len(seeds)}): {run_dir}", flush=True)
        status = run_flgen(["fit", *arguments, f"--seed_index={index}"])
        if status:
            print(f"flgen: seed {seed} ended with exit status {status}; the same command goes on", file=sys.stderr)
            return status
    _summarise(configuration, folder)
    return 0


def take_seed(configuration: Configuration) -> bool:
    """Turn the configuration into that of one seed's run, in place; return whether there is anything left to do.

    Args:
        configuration: With `seeds` and `seed_index`.
    """
    _check(configuration)
    values = configuration.values
    seed = values.seeds[values.seed_index]
    run_dir = _run_dir(Path(values.run_dir), seed)
    if _is_finished(configuration, run_dir):
        print(f"seed {seed}: done before ({run_dir})", flush=True)
        return False
    values.partition_seed = _partition_seed(values)
    values.seed_everything, values.run_dir, values.seeds, values.seed_index = seed, str(run_dir), None, None
    values.ckpt_path = "last" if has_checkpoint(run_dir) else None
    return True


def _check(configuration: Configuration) -> None:
    values = configuration.values
    if values.seeds is None:
        raise UsageError(f"--seed_index {values.seed_index} needs --seeds: give all of them, as in --seeds '[0,1,2]'")
    if not values.seeds or len(set(values.seeds)) < len(values.seeds):
        raise UsageError(f"--seeds is {values.seeds}: give one seed or more, each once, as in --seeds '[0,1,2]'")
    if values.seed_index is not None and not 0 <= values.seed_index < len(values.seeds):
        raise UsageError(f"--seed_index is {values.seed_index}: give 0 to {len(values.seeds) - 1}, a place in --seeds")
    if values.ckpt_path is not None:
        raise UsageError(
            f"--ckpt_path {values.ckpt_path}: with --seeds every run goes on from its own last checkpoint; leave it out"
        )


def _check_alone() -> None:
    """Refuse to start runs from each of several processes that torchrun or srun has started."""
    torchrun = int(os.environ.get("WORLD_SIZE", "1"))
    srun = int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1
    if max(torchrun, srun) > 1:
        raise UsageError(
            f"--seeds runs one seed after another, but {max(torchrun, srun)} processes were started for it: give each "
            "job one seed by --seed_index, then summarise them by the same command on one process without it"
        )


def _run_dir(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _partition_seed(values: Any) -> int:
    """Return the seed of the partition, which is the same for all seeds of the run."""
    chosen: int | None = values.partition_seed
    return values.seeds[0] if chosen is None else chosen


def _is_finished(configuration: Configuration, run_dir: Path) -> bool:
    """Whether a seed's run has reached its last round, or the last one that its privacy budget pays for.

    Raises:
        FlgenError: The folder holds a run of another experiment.
    """
    folder = RunFolder(run_dir)
    if not folder.config.is_file():
        return False
    asked = {**configuration.resolved(), "partition_seed": _partition_seed(configuration.values)}
    if differing := list(differing_options(_read_config(folder.config), asked)):
        raise FlgenError(
            f"{folder.config} is of another experiment (different {', '.join(differing[:3])}): choose another "
            f"--run_dir, or remove {run_dir} to repeat this seed"
        )
    rounds = configuration.values.trainer.rounds
    events = read_events(folder.events)
    return any(event["event"] == "end" and event["round"] >= rounds for event in events) or _ended_by_budget(events)


def _ended_by_budget(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run, since it was last taken up, has come to the end of its privacy budget and has ended there."""
    names = [event["event"] for event in events]
    taken_up = max((number for number, name in enumerate(names) if name in ("start", "resume")), default=0)
    return "budget" in names[taken_up:] and names[-1] == "end"


def _read_config(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FlgenError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return config if isinstance(config, dict) else {}


def differing_options(written: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options in which two configurations describe different experiments, apart from the run's seed.

    Args:
        written: A run's config.yaml.
        asked: The configuration in question; its nulls of the model stand for what the data set says.
    """
    divided = written.get("partition_seed")
    if asked["partition_seed"] != (written.get("seed_everything") if divided is None else divided):
        yield "partition_seed"
    written = {"split": describe(LocalSplit()), **written}  # of which older runs say nothing
    for section in ("model", "method", "data", "partition", "split", "initial_weights"):
        theirs, ours = dict(_flat(written.get(section), section)), dict(_flat(asked.get(section), section))
        for name in dict.fromkeys([*theirs, *ours]):
            left_to_the_data = section == "model" and ours.get(name) is None
            if theirs.get(name) != ours.get(name) and name not in MAY_DIFFER and not left_to_the_data:
                yield name
    for option in ("clients_per_round", "participation", "precision"):
        if written.get("trainer", {}).get(option) != asked["trainer"].get(option):
            yield f"trainer.{option}"


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}")
    else:
        yield prefix, value


def _summarise(configuration: Configuration, folder: Path) -> None:
    """Write summary.csv and print the headline metric of the final round, of a chosen one, then of the best one."""
    seeds, rounds = configuration.values.seeds, configuration.values.trainer.rounds
    folders = [RunFolder(_run_dir(folder, seed)) for seed in seeds]
    runs = [read_metrics(run.metrics) for run in folders]
    reached = [int(rows[-1]["round"]) if rows else 0 for rows in runs]
    by_budget = all(_ended_by_budget(read_events(run.events)) for run in folders)
    common, why = (
        (reached[0], f"the privacy budget of {folders[0].path} ended it after {reached[0]}")
        if by_budget
        else (rounds, f"--trainer.rounds is {rounds}")
    )
    for run, last in zip(folders, reached, strict=True):
        if last != common:
            raise FlgenError(f"{run.path} has {last} rounds, {why}: runs of different lengths have no common mean")
    if by_budget:
        print(f"every seed ended with its privacy budget, after round {common} of {rounds}")
    summary = summarise(runs)
    write_summary(folder / "summary.csv", summary)
    judged_by = headline(runs[0])
    for row in summary:
        if row.metric == judged_by:
            print(describe_spread(row.metric, row)[:-1] + WHICH_ROUND[row.round] + ")")
    print(f"summary of all metrics: {folder / 'summary.csv'}")
