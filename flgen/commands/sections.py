"""What the commands' configurations have in common: their top-level keys, and how they are parsed and built."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.config import Configuration, Section, build_parser, parse
from flgen.experiment.runs import RunFolder

if TYPE_CHECKING:
    from jsonargparse import Namespace


def seed_section() -> Section:
    """`seed_everything`."""
    return Section("seed_everything", int, default=0, help="Seed of every random stream.")


def partition_seed_section() -> Section:
    """`partition_seed`."""
    return Section(
        "partition_seed",
        int | None,
        help="Seed of who holds which samples, test samples included; null takes seed_everything, and with --seeds the "
        "first of them.",
    )


def run_dir_section() -> Section:
    """`run_dir`."""
    return Section("run_dir", str, default="runs/default", help="The run folder.")


def model_section(help: str = "The module that clients train.", several: bool = False) -> Section:
    """`model`, or with `several` also a list of them."""
    from flgen.deferred import LightningModule
    from flgen.models import ResnetGenerator  # noqa: F401  (short names are those of classes that are imported)

    return Section("model", LightningModule, "class", required=True, help=help, several=several)


def data_section() -> Section:
    """`data`."""
    from flgen.data import LabelledData

    return Section("data", LabelledData, "class", default={"class_path": "Digits"}, help="The data set.")


def partition_section() -> Section:
    """`partition`."""
    from flgen.data import Partitioner

    return Section("partition", Partitioner, "class", default={"class_path": "IID"}, help="How clients share the data.")


def initial_weights_section() -> Section:
    """`initial_weights`."""
    return Section(
        "initial_weights",
        str | None,
        help="Weights to start from, a *.safetensors file such as `flgen pretrain` writes; null starts at random.",
    )


def ckpt_path_section() -> Section:
    """`ckpt_path`."""
    return Section(
        "ckpt_path",
        str | None,
        help="Checkpoint folder to start from; `last`, alone or as the end of a path, is the newest good one; `auto` "
        "is that of run_dir, or a fresh start if it has none.",
    )


def federated_sections() -> list[Section]:
    """The keys of a federated run, which `fit` writes and whoever reads its checkpoints takes up again."""
    from flgen.callbacks import Evaluation, RunLogger
    from flgen.data import LocalSplit
    from flgen.methods import Method
    from flgen.trainer import FederatedTrainer

    return [
        seed_section(),
        partition_seed_section(),
        Section(
            "seeds", list[int] | None, help="Seeds of several runs, one folder each inside run_dir, in one command."
        ),
        run_dir_section(),
        Section("trainer", FederatedTrainer, "options"),
        model_section("The module that clients train; a list of several: client i of X has the (i mod X)th.", True),
        Section("method", Method, "class", required=True, help="The federated algorithm."),
        data_section(),
        partition_section(),
        Section("split", LocalSplit, "options"),
        initial_weights_section(),
        Section("evaluation", Evaluation, "options"),
        Section("loggers", list[RunLogger], default=[], help="Loggers besides metrics.csv."),
        ckpt_path_section(),
    ]


def parse_command(
    command: str,
    description: str,
    arguments: Sequence[str],
    sections: Sequence[Section],
    options: Mapping[str, dict[str, Any]] | None = None,
) -> Configuration:
    """Parse the arguments of a command.

    Args:
        command: Its name, as it is typed after `flgen`.
        description: One line for `--help`.
        arguments: What follows the name.
        sections: Its top-level keys.
        options: Further options that belong to no section, with the settings that the parser takes.

    Raises:
        UsageError: An unknown key, a wrong type or value.
    """
    parser = build_parser(sections, options or {}, description)
    parser.prog = f"flgen {command}"
    return parse(parser, arguments, sections)


def build(configuration: Configuration) -> Namespace:
    """Return the objects of a configuration; a module's initial weights are those of the run's seed."""
    from lightning.fabric import seed_everything

    from flgen.federation.launch import keep_to_one_thread

    keep_to_one_thread()
    seed_everything(configuration.values.seed_everything, verbose=False)
    return configuration.build()


def what_runs(built: Namespace) -> tuple[Any, ...]:
    """The method, model, data and partition that every federated command of the trainer takes."""
    return built.method, built.model, built.data, built.partition


def with_run_config(arguments: list[str]) -> list[str]:
    """Begin with the configuration of the run that `--ckpt_path` belongs to; other arguments override it."""
    wants_help = any(argument in ("-h", "--help") or ".help" in argument for argument in arguments)
    if wants_help or any(argument.startswith("--config") for argument in arguments):
        return arguments
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("--ckpt_path=")]
    given += [value for option, value in pairwise(arguments) if option == "--ckpt_path"]
    if not given:
        raise UsageError("--ckpt_path is missing: name a checkpoint, such as runs/x/checkpoints/last")
    if (Path(given[-1]) / "config.yaml").is_file():
        raise UsageError(f"--ckpt_path {given[-1]} is a run folder: give {Path(given[-1]) / 'checkpoints' / 'last'}")
    config = Path(given[-1]).parent.parent / "config.yaml"
    if not config.is_file():
        raise FlgenError(f"{config} is missing: --ckpt_path must be inside a run folder, as runs/x/checkpoints/last is")
    # Nobody typed this file's name: it says what ran, and not what this command does, such as where it writes.
    of_a_run = {section.name for section in federated_sections()}
    if strange := [name for name in RunFolder(config.parent).read_config() if name not in of_a_run]:
        raise FlgenError(f"{config} has {strange[0]}, which no run writes into it: take it out, or give a --config")
    return ["--config", str(config), *arguments]


def writable(path: str) -> Path:
    """Return the path of a file to write, after making sure that its folder can take it."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlgenError(f"{file.parent} cannot be made ({error.strerror}): choose another place") from error
    if not os.access(file.parent, os.W_OK):
        raise FlgenError(f"{file.parent} cannot be written to: choose another place")
    return file
