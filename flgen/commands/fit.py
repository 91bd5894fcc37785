"""`flgen fit`."""

from __future__ import annotations

from flgen.commands.sections import build, federated_sections, parse_command, what_runs
from flgen.commands.seeds import OPTIONS, run_seeds, take_seed
from flgen.experiment.records import read_metrics
from flgen.experiment.summary import describe_readings


def run(arguments: list[str]) -> int:
    """Train a method over many clients."""
    configuration = parse_command("fit", run.__doc__ or "", arguments, federated_sections(), OPTIONS)
    options = configuration.values
    if options.seeds is not None and options.seed_index is None:
        return run_seeds(configuration, arguments)
    if options.seed_index is not None and not take_seed(configuration):
        return 0
    built = build(configuration)
    config = configuration.resolved()
    del config["seed_index"]
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
        config=config,
    )
    if result.signal_number:
        return 128 + result.signal_number
    if built.trainer.is_global_zero:  # under torchrun or srun every rank comes here
        if line := describe_readings(read_metrics(built.trainer.folder.metrics)):
            print(line)
        print(f"run folder: {result.run_dir}")
    return 0
