"""`flgen fit`."""

from __future__ import annotations

from flgen.commands.sections import build, federated_sections, parse_command, what_runs


def run(arguments: list[str]) -> int:
    """Train a method over many clients."""
    configuration = parse_command("fit", run.__doc__ or "", arguments, federated_sections())
    options, built = configuration.values, build(configuration)
    result = built.trainer.fit(
        *what_runs(built),
        evaluation=built.evaluation,
        loggers=built.loggers,
        run_dir=options.run_dir,
        seed_everything=options.seed_everything,
        ckpt_path=options.ckpt_path,
        config=configuration.resolved(),
    )
    if result.signal_number:
        return 128 + result.signal_number
    if built.trainer.is_global_zero:  # under torchrun or srun every rank comes here
        print(f"run folder: {result.run_dir}")
    return 0
