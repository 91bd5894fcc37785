"""`flgen sweep`: the configurations of a sweep file, listed by number, or run on this machine."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from flgen.commands.sections import parse_command
from flgen.commands.seeds import check_alone
from flgen.commands.sweep_jobs import common_metric, last_words, plan, run_jobs
from flgen.commands.sweep_run import DRAW_OPTIONS, SweepRuns
from flgen.commands.sweep_table import SweepDisplay, aligned, summary_lines, write_sweep_csv
from flgen.errors import FlgenError, UsageError
from flgen.experiment.argument_order import take_options
from flgen.experiment.sweep import read_sweep

OPTIONS: dict[str, dict[str, Any]] = {
    "list": {
        "action": "store_true",
        "help": "Print the configurations, by number, with the folder of each, and run nothing.",
    },
    "jobs": {"type": int, "default": 1, "help": "How many run at once; they share the cores."},
    **DRAW_OPTIONS,
}

DESCRIPTION = """Run every configuration of a sweep file: flgen sweep FILE [options of this command and of flgen fit].
The file is W&B's; flgen runs grids and random sweeps."""


def run(arguments: list[str]) -> int:
    """List or run the configurations of a sweep file.

    Args:
        arguments: The file, and options; what is no option of this command is one of `flgen fit`, for every run.

    Raises:
        UsageError: The request or a configuration is wrong.
        FlgenError: A file cannot be read or written, or a folder has another run.
    """
    if any(word in ("-h", "--help") for word in arguments):
        parse_command("sweep", DESCRIPTION, ["--help"], (), OPTIONS)
    if not arguments:
        raise UsageError("which sweep? flgen sweep FILE, such as configs/sweeps/prism_digits.yaml")
    if arguments[0].startswith("-"):
        raise UsageError(f"{arguments[0]}: the sweep file comes first: flgen sweep FILE ...")
    own, typed = take_options(arguments[1:], OPTIONS)
    options = parse_command("sweep", DESCRIPTION, own, (), OPTIONS).values
    if options.jobs < 1:
        raise UsageError(f"--jobs is {options.jobs}: give 1 or more")
    runs = SweepRuns(read_sweep(arguments[0]), options.count, options.seed, tuple(typed))
    if options.list:
        for line in aligned([[str(i), str(runs.run_dir(i)), runs.described(i)] for i in range(len(runs))]):
            print(line)
        return 0
    check_alone("flgen sweep", "give each job one configuration by `flgen fit --sweep ... --index`")
    return _run_all(runs, options.jobs)


def _run_all(runs: SweepRuns, at_once: int) -> int:
    metric = runs.sweep.metric
    jobs = plan(runs)
    before = [job for job in jobs if job.state == "done"]
    print(
        f"sweep {runs.sweep.name}: {len(jobs)} runs, {len(before)} done before, {at_once} at once, in {runs.folder}",
        file=sys.stderr,
        flush=True,
    )
    try:
        with SweepDisplay(jobs, metric) as display:
            stop = run_jobs(runs, jobs, at_once, display.look)
    except OSError as error:
        raise FlgenError(f"{runs.folder} cannot be written to ({error.strerror}): choose another --run_dir") from error
    metric = common_metric(metric, jobs)
    table = runs.folder / "sweep.csv"
    write_sweep_csv(table, jobs, metric, [runs.values(job.index) for job in jobs])
    for line in summary_lines(jobs, metric):
        print(line)
    print(f"table of all runs: {table}")
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        words = last_words(runs.log(job.index))
        print(f"flgen: index {job.index} failed (exit status {job.exit_status}): {words}", file=sys.stderr)
        print(f"flgen:   all it said: {runs.log(job.index)}", file=sys.stderr)
        print(f"flgen:   alone again: {shlex.join(['flgen', *runs.alone(job.index)])}", file=sys.stderr)
    stopped = [job.index for job in jobs if job.state == "stopped"]
    if stop or stopped:
        print(f"flgen: stopped; the same command goes on with {_counted(jobs)}", file=sys.stderr)
    if stop:
        return 128 + stop
    return 1 if failed or stopped else 0


def _counted(jobs: Any) -> str:
    left = sum(job.state != "done" for job in jobs)
    return f"the {left} of {len(jobs)} that are not done"
