"""`flgen sample`."""

from __future__ import annotations

from typing import Any

from flgen.commands.sections import build, federated_sections, parse_command, what_runs, with_run_config, writable
from flgen.errors import UsageError

OPTIONS: dict[str, dict[str, Any]] = {
    "num": {"type": int, "default": 64, "help": "Number of images."},
    "output": {"type": str, "default": "samples.png", "help": "The PNG to write."},
    "kind": {"type": str | None, "help": "Kind of model, such as threshold; the headline kind by default."},
}


def run(arguments: list[str]) -> int:
    """Draw images from a checkpoint."""
    configuration = parse_command(
        "sample", run.__doc__ or "", with_run_config(arguments), federated_sections(), OPTIONS
    )
    options = configuration.values
    if options.num < 1:
        raise UsageError(f"--num is {options.num}: give 1 or more")
    output = writable(options.output)
    built = build(configuration)
    drawn = built.trainer.samples(
        *what_runs(built),
        split=built.split,
        ckpt_path=options.ckpt_path,
        count=options.num,
        seed_everything=options.seed_everything,
        partition_seed=options.partition_seed,
    )
    if not drawn:
        raise UsageError(f"--method {type(built.method).__name__} draws no images: there is nothing to sample")
    kind = options.kind or next(iter(drawn))
    if kind not in drawn:
        raise UsageError(f"--kind {kind}: this method draws {', '.join(drawn)}")
    from flgen.figures.sample_grid import sample_grid, save_png

    save_png(sample_grid(drawn[kind], columns=None), output)
    print(f"{options.num} images ({kind}): {output}")
    return 0
