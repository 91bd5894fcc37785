"""`flgen generator`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgen.commands.sections import build, data_section, parse_command, seed_section, writable
from flgen.errors import UsageError
from flgen.experiment.config import Section

OPTIONS: dict[str, dict[str, Any]] = {
    "output": {"type": str, "default": "generator", "help": "Folder of the pipeline; it must be new."},
    "steps": {"type": int, "default": 1500, "help": "Training steps, of 64 images each."},
}


def run(arguments: list[str]) -> int:
    """Train a small text-to-image pipeline on a set of small images, to stand in for a large pre-trained one."""
    sections: list[Section] = [seed_section(), data_section()]
    configuration = parse_command("generator", run.__doc__ or "", arguments, sections, OPTIONS)
    options = configuration.values
    if options.steps < 1:
        raise UsageError(f"--steps is {options.steps}: give 1 or more")
    folder = Path(options.output)
    if folder.exists():
        raise UsageError(f"--output {folder} exists already: give another name, or remove it")
    partial = writable(str(folder.with_name(f".{folder.name}.partial")))
    data = build(configuration).data
    from flgen.data import ImageData

    if not isinstance(data, ImageData):
        raise UsageError(f"--data {type(data).__name__} holds {data.noun}: the pipeline draws images")
    data.prepare_data()
    data.setup()
    from flgen.synthesis.small_diffusion import train_small_diffusion

    train_small_diffusion(
        data.train.images,
        data.train.labels,
        data.class_names,
        partial,
        steps=options.steps,
        seed=options.seed_everything,
    )
    partial.rename(folder)
    print(f"pipeline: {folder}")
    return 0
