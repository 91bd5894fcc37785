"""`flgen fit --seeds`: one experiment with several seeds, each a run of its own, and what they gave together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flgen.commands.child_process import run_flgen
from flgen.commands.finished_runs import ended_by_budget, is_finished
from flgen.errors import FlgenError, UsageError
from flgen.experiment.config import Configuration
from flgen.experiment.records import read_events, read_metrics
from flgen.experiment.runs import AUTO, RunFolder
from flgen.experiment.summary import describe_spread, summarise, write_summary
from flgen.federation.launchers import started_processes
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


def run_seeds(configuration: Configuration, arguments: Sequence[str]) -> int:
    """Run every seed that is not finished, each in a fresh process, then summarise all; return the exit status.

    Args:
        configuration: Of the whole command.
        arguments: What was typed after `flgen fit`; every seed's process is given the same and its index.
    """
    _check(configuration)
    check_alone(
        "--seeds",
        "give each job one seed by --seed_index, then summarise them by the same command on one process without it",
    )
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
        if _is_finished(configuration, run_dir, seed):
            print(f"seed {seed}: done before ({run_dir})", flush=True)
            continue
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
    if _is_finished(configuration, run_dir, seed):
        print(f"seed {seed}: done before ({run_dir})", flush=True)
        return False
    values.partition_seed = _partition_seed(values)
    values.seed_everything, values.run_dir, values.seeds, values.seed_index = seed, str(run_dir), None, None
    values.ckpt_path = AUTO
    return True


def config_of_run(configuration: Configuration) -> dict[str, Any]:
    """Return the resolved configuration without the options that say which of several runs it is."""
    return {name: value for name, value in configuration.resolved().items() if name not in OPTIONS}


def _check(configuration: Configuration) -> None:
    values = configuration.values
    if values.seeds is None:
        raise UsageError(f"--seed_index {values.seed_index} needs --seeds: give all of them, as in --seeds '[0,1,2]'")
    if not values.seeds or len(set(values.seeds)) < len(values.seeds):
        raise UsageError(f"--seeds is {values.seeds}: give one seed or more, each once, as in --seeds '[0,1,2]'")
    if values.seed_index is not None and not 0 <= values.seed_index < len(values.seeds):
        raise UsageError(f"--seed_index is {values.seed_index}: give 0 to {len(values.seeds) - 1}, a place in --seeds")
    if values.ckpt_path not in (None, AUTO):
        raise UsageError(
            f"--ckpt_path {values.ckpt_path}: with --seeds every run goes on from its own last checkpoint; leave it out"
        )


def check_alone(command: str, remedy: str) -> None:
    """Refuse to start runs from each of several processes that torchrun or srun has started.

    Args:
        command: What starts them.
        remedy: What to do.

    Raises:
        UsageError: This is one of several.
    """
    started = started_processes()
    if started is not None and started.processes > 1:
        raise UsageError(
            f"{command} runs one after another, but {started.processes} processes were started for it: {remedy}"
        )


def _run_dir(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _partition_seed(values: Any) -> int:
    """Return the seed of the partition, which is the same for all seeds of the run."""
    chosen: int | None = values.partition_seed
    return values.seeds[0] if chosen is None else chosen


def _is_finished(configuration: Configuration, run_dir: Path, seed: int) -> bool:
    asked = {
        **configuration.resolved(),
        "seed_everything": seed,
        "partition_seed": _partition_seed(configuration.values),
    }
    return is_finished(asked, run_dir)


def _summarise(configuration: Configuration, folder: Path) -> None:
    """Write summary.csv and print the headline metric of the final round, of a chosen one, then of the best one."""
    seeds, rounds = configuration.values.seeds, configuration.values.trainer.rounds
    folders = [RunFolder(_run_dir(folder, seed)) for seed in seeds]
    runs = [read_metrics(run.metrics) for run in folders]
    reached = [int(rows[-1]["round"]) if rows else 0 for rows in runs]
    by_budget = all(ended_by_budget(read_events(run.events)) for run in folders)
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
