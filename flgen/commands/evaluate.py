"""`flgen evaluate`."""

from __future__ import annotations

import json

from flgen.commands.sections import build, federated_sections, parse_command, what_runs, with_run_config, writable


def run(arguments: list[str]) -> int:
    """Measure a checkpoint on this one process."""
    output = {"output": {"type": str | None, "help": "Also write the metrics to this JSON file."}}
    configuration = parse_command(
        "evaluate", run.__doc__ or "", with_run_config(arguments), federated_sections(), output
    )
    options, built = configuration.values, build(configuration)
    metrics = built.trainer.evaluate(
        *what_runs(built),
        split=built.split,
        evaluation=built.evaluation,
        ckpt_path=options.ckpt_path,
        seed_everything=options.seed_everything,
        partition_seed=options.partition_seed,
    )
    for name, value in metrics.items():
        print(f"{name} {value:.6g}")
    if options.output is not None:
        writable(options.output).write_text(json.dumps(metrics, indent=1) + "\n")
    return 0
