"""`flgen fit`."""

from __future__ import annotations

from pathlib import Path

from flgen.commands.finished_runs import is_finished
from flgen.commands.sections import build, what_runs
from flgen.commands.seeds import config_of_run, run_seeds, take_seed
from flgen.commands.sweep_run import parse_fit
from flgen.experiment.records import read_metrics
from flgen.experiment.runs import AUTO
from flgen.experiment.summary import describe_readings


def run(arguments: list[str]) -> int:
    """Train a method over many clients."""
    configuration = parse_fit(arguments, run.__doc__ or "")
    options = configuration.values
    if options.seeds is not None and options.seed_index is None:
        return run_seeds(configuration, arguments)
    if options.seed_index is not None and not take_seed(configuration):
        return 0
    if options.ckpt_path == AUTO and is_finished(config_of_run(configuration), Path(options.run_dir)):
        print(f"done before: {options.run_dir}")
        return 0
    built = build(configuration)
    result = built.trainer.fit(
        *what_runs(built),
        split=built.split,
        evaluation=built.evaluation,
        loggers=built.loggers,
        run_dir=options.run_dir,
        seed_everything=options.seed_everything,
        partition_seed=options.partition_seed,
        ckpt_path=options.ckpt_path,
        initial_weights=options.initial_weights,
        config=config_of_run(configuration),  # by now the model's sizes are those of the data
    )
    if result.signal_number:
        return 128 + result.signal_number
    if built.trainer.is_global_zero:  # under torchrun or srun every rank comes here
        if line := describe_readings(read_metrics(built.trainer.folder.metrics)):
            print(line)
        print(f"run folder: {result.run_dir}")
    return 0
