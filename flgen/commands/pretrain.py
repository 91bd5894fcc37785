"""`flgen pretrain`."""

from __future__ import annotations

from flgen.commands.sections import (
    build,
    ckpt_path_section,
    data_section,
    initial_weights_section,
    model_section,
    parse_command,
    seed_section,
)
from flgen.experiment.config import Section


def run(arguments: list[str]) -> int:
    """Train a model on the server, on generated samples or on all real ones, with all processes together."""
    configuration = parse_command("pretrain", run.__doc__ or "", arguments, _sections())
    options, built = configuration.values, build(configuration)
    result = built.trainer.fit(
        built.model,
        built.data,
        samples=options.samples,
        per_class=options.per_class,
        initial_weights=options.initial_weights,
        run_dir=options.run_dir,
        seed_everything=options.seed_everything,
        ckpt_path=options.ckpt_path,
        config=configuration.resolved(),
    )
    if result.signal_number:
        return 128 + result.signal_number
    if built.trainer.is_global_zero:
        print(f"weights: {result.weights} (sha256 {result.sha256})")
    return 0


def _sections() -> list[Section]:
    from flgen.server_trainer import ServerTrainer

    return [
        seed_section(),
        Section("run_dir", str, default="runs/pretrain", help="The run folder."),
        Section("trainer", ServerTrainer, "options"),
        model_section("The module that the server trains."),
        data_section(),
        Section(
            "samples",
            str | None,
            help="Folder that `flgen synthesize` wrote; null trains on the data set's own training split.",
        ),
        Section("per_class", int | None, help="Use the first so many samples of each class; null uses all."),
        initial_weights_section(),
        ckpt_path_section(),
    ]
