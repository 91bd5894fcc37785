"""`flgen sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgen.commands.sections import build, federated_sections, parse_command, what_runs, with_run_config, writable
from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.experiment.config import Section

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from torch import Tensor

OPTIONS: dict[str, dict[str, Any]] = {
    "num": {"type": int, "default": 64, "help": "Number of images."},
    "output": {"type": str, "default": "samples.png", "help": "The PNG to write."},
    "ticket": {"type": str | None, "help": "A file that `flgen export` wrote, in place of --ckpt_path."},
    "kind": {"type": str | None, "help": "Kind of model, such as threshold; the headline kind by default."},
}


def run(arguments: list[str]) -> int:
    """Draw images from a checkpoint or a ticket."""
    description = run.__doc__ or ""
    if _names(arguments, "ticket"):
        if _names(arguments, "ckpt_path"):
            raise UsageError("--ckpt_path and --ticket are both given: draw from one of them")
        noise = Section("seed_everything", int | None, help="Seed of the noise; null takes that of the run.")
        options = parse_command("sample", description, arguments, [noise], OPTIONS).values
        output = _checked(options)
        drawn = _drawn_by_ticket(options)
    else:
        configuration = parse_command("sample", description, with_run_config(arguments), federated_sections(), OPTIONS)
        options = configuration.values
        output = _checked(options)
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
        who = "this method" if options.ticket is None else "this ticket"
        raise UsageError(f"--kind {kind}: {who} draws {', '.join(drawn)}")
    from flgen.figures.sample_grid import sample_grid, save_png

    save_png(sample_grid(drawn[kind], columns=None), output)
    print(f"{options.num} images ({kind}): {output}")
    return 0


def _names(arguments: list[str], option: str) -> bool:
    return any(argument.partition("=")[0] == f"--{option}" for argument in arguments)


def _checked(options: Namespace) -> Path:
    if options.num < 1:
        raise UsageError(f"--num is {options.num}: give 1 or more")
    return writable(options.output)


def _drawn_by_ticket(options: Namespace) -> dict[str, Tensor]:
    """Return what a ticket draws, by the kind of its mask."""
    from flgen.federation.launch import keep_to_one_thread
    from flgen.federation.streams import RandomStreams
    from flgen.methods.finished_prism import TicketGenerator
    from flgen.methods.generator_training import draw_images

    keep_to_one_thread()
    source = TicketGenerator("--ticket", options.ticket)
    generator, origin = source.network, source.origin()
    source.finish()
    seed = origin.seed if options.seed_everything is None else options.seed_everything
    return {origin.masks: draw_images(generator, options.num, RandomStreams(seed).torch("evaluation noise"))}
