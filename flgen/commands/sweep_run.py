"""Which run of a sweep a `flgen fit` is: one of flgen's own, by its index, or one that W&B's agent has started."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flgen.commands.sections import federated_sections, parse_command
from flgen.commands.seeds import OPTIONS
from flgen.errors import FlgenError, UsageError
from flgen.experiment.argument_order import split_options, take_options
from flgen.experiment.class_paths import locate
from flgen.experiment.config import Configuration, Section, build_parser, parse
from flgen.experiment.plain_values import yaml_value
from flgen.experiment.runs import AUTO
from flgen.experiment.sweep import Sweep, option_words, read_sweep
from flgen.federation.streams import RandomStreams

DRAW_OPTIONS: dict[str, dict[str, Any]] = {
    "count": {
        "type": int | None,
        "help": "Of a sweep the first so many configurations; null takes run_cap of the file.",
    },
    "seed": {
        "type": int,
        "default": 0,
        "help": "Of a random sweep: its configurations, each drawn by its index and this. (Of a run: seed_everything.)",
    },
}

SWEEP_OPTIONS: dict[str, dict[str, Any]] = {
    "sweep": {
        "type": str | None,
        "help": "A sweep file, of which --index is to be run, in a folder of its own inside run_dir. Its parameters "
        "override --config; what is typed as an option overrides them.",
    },
    "index": {"type": int | None, "help": "Number of the configuration in --sweep, counted from 0."},
    **DRAW_OPTIONS,
}

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class SweepRuns:
    """The runs of a sweep, as they were asked for.

    Args:
        sweep: What the file says.
        count: The most configurations; None takes the file's run_cap.
        seed: Of a random sweep.
        typed: Options of `flgen fit` that were typed besides.
    """

    sweep: Sweep
    count: int | None = None
    seed: int = 0
    typed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UsageError(f"--count is {self.count}: give 1 or more")
        self.sweep.size(self.count)

    def __len__(self) -> int:
        return self.sweep.size(self.count)

    def values(self, index: int) -> dict[str, Any]:
        """Return configuration number `index`, by parameter: it depends on the file, the seed and the index alone."""
        streams = RandomStreams(self.seed)

        def uniform(name: str) -> float:
            return ((streams.seed_for(f"sweep/{name}", round=index) >> 11) + 0.5) / 2**52  # never 0, never 1

        return self.sweep.values(index, uniform)

    def arguments(self, index: int) -> list[str]:
        """Return what is typed after `flgen fit` for the same run without a sweep, but for its folder.

        Files come first: those that were typed, or else the `command`'s, then those that are parameters. Then come
        options: the command's own, the parameters, and what was typed.
        """
        files, options = take_options(self.typed, ["config"])
        of_command, before = take_options(self.sweep.before, ["config"])
        more_of_command, after = take_options(self.sweep.after, ["config"])
        overlays, parameters = take_options(option_words(self.values(index)), ["config"])
        return [
            *(files or [*of_command, *more_of_command]),
            *overlays,
            *before,
            *parameters,
            *after,
            *options,
        ]

    @cached_property
    def folder(self) -> Path:
        """The folder of all runs: `--run_dir`, or the run_dir of the last `--config` that has one."""
        typed, _ = take_options(self.typed, ["config"])
        words = [*(() if typed else (*self.sweep.before, *self.sweep.after)), *self.typed]
        own = [*self.sweep.before, *self.sweep.after, *self.typed]
        if given := [option.value for option in split_options(own) if option.name == "run_dir"]:
            return Path(given[-1] or "")
        files = [option.value for option in split_options(words) if option.name == "config"]
        named = [found for file in files if (found := _run_dir_of(file)) is not None]
        return Path(named[-1] if named else "runs/default")

    def run_dir(self, index: int) -> Path:
        """Return the folder of one run: its number, and what tells it from the others."""
        return self.folder / "-".join(part for part in (f"{index:03d}", self.sweep.label(self.values(index))) if part)

    def log(self, index: int) -> Path:
        """Return the file that takes what one run prints where several run at once."""
        return self.folder / "logs" / f"{index:03d}.log"

    def alone(self, index: int) -> list[str]:
        """Return what is typed after `flgen` to run one configuration, again or for the first time."""
        draw = [] if self.count is None else [f"--count={self.count}"]
        draw += [] if self.seed == 0 else [f"--seed={self.seed}"]
        return ["fit", f"--sweep={self.sweep.path}", f"--index={index}", *draw, *self.typed]

    def described(self, index: int) -> str:
        """Return the parameters of a configuration as they are typed."""
        return shlex.join(option_words(self.values(index)))

    @cached_property
    def _parser(self) -> tuple[Any, list[Section]]:
        sections = federated_sections()
        parser = build_parser(sections, OPTIONS, "Train a method over many clients.")
        parser.prog = "flgen fit"
        return parser, sections

    def configuration(self, index: int) -> Configuration:
        """Return the parsed configuration of one run, in a folder of its own, to be begun or continued.

        Raises:
            UsageError: An option is wrong, or says which run it is.
            FlgenError: The run's folder has another sweep's run of this number.
        """
        parser, sections = self._parser
        configuration = parse(parser, self.arguments(index), sections)
        values = configuration.values
        _check_single(values, "--sweep")
        run_dir = self.run_dir(index)
        for other in [*self.folder.glob(f"{index:03d}"), *self.folder.glob(f"{index:03d}-*")]:
            if other.name != run_dir.name:
                raise FlgenError(
                    f"{other} is of another sweep, in which --index {index} was something else: choose another "
                    f"--run_dir, or remove {self.folder}"
                )
        values.run_dir, values.ckpt_path = str(run_dir), AUTO
        for logger in values.loggers:
            if "group" in logger.init_args and logger.init_args.group is None:
                logger.init_args.group = self.sweep.name
        return configuration


def parse_fit(arguments: Sequence[str], description: str) -> Configuration:
    """Return the configuration of a `flgen fit`: as it is typed, or that of one run of a sweep.

    Args:
        arguments: What is typed after `flgen fit`.
        description: One line for `--help`.

    Raises:
        UsageError: An option is wrong, or two do not go together.
        FlgenError: The sweep file cannot be read, or the run's folder has another run.
    """
    own, typed = take_options(arguments, SWEEP_OPTIONS)
    if not own:
        shown = SWEEP_OPTIONS if any(word in ("-h", "--help") for word in arguments) else {}
        configuration = parse_command("fit", description, arguments, federated_sections(), {**OPTIONS, **shown})
        return _run_of_agent(configuration, arguments) if under_agent() else configuration
    options = parse_command("fit", description, own, (), SWEEP_OPTIONS).values
    if options.sweep is None:
        name = split_options(own)[0].name
        hint = "; the seed of a run is --seed_everything" if name == "seed" else ""
        raise UsageError(f"--{name} {options[name]} is of a --sweep: give --sweep FILE{hint}")
    if options.index is None:
        raise UsageError(f"--sweep {options.sweep} needs --index: `flgen sweep {options.sweep} --list` prints them")
    runs = SweepRuns(read_sweep(options.sweep), options.count, options.seed, tuple(typed))
    if not 0 <= options.index < len(runs):
        raise UsageError(f"--index is {options.index}: {options.sweep} has 0 to {len(runs) - 1}")
    return runs.configuration(options.index)


def under_agent() -> bool:
    """Whether W&B's agent has started this process, for one run of a sweep of its own."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def _run_of_agent(configuration: Configuration, arguments: Sequence[str]) -> Configuration:
    """Return the configuration with a folder of its own, to be begun or continued, and with W&B's logger."""
    from flgen.callbacks import WandbLogger

    values = configuration.values
    _check_single(values, "a run of W&B's agent")
    if not any(issubclass(locate(logger.class_path), WandbLogger) for logger in values.loggers):
        more = [*arguments, "--loggers+=WandbLogger"]  # without one the agent's run would stay empty
        configuration = parse_command("fit", "", more, federated_sections(), OPTIONS)
        values = configuration.values
    run_id = os.environ["WANDB_RUN_ID"]
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"WANDB_RUN_ID is {run_id!r:.60}: letters, digits, `_`, `-` and `.` make a folder's name")
    values.run_dir, values.ckpt_path = str(Path(values.run_dir) / run_id), AUTO
    return configuration


def _check_single(values: Any, what: str) -> None:
    """Refuse options that make several runs of one, or that continue another one."""
    if values.seeds is not None or values.seed_index is not None:
        raise UsageError(
            f"--seeds {values.seeds} and {what}: sweep over seed_everything in place of it"
            + (", and give --seeds null" if values.seeds is not None else "")
        )
    if values.ckpt_path not in (None, AUTO):
        raise UsageError(f"--ckpt_path {values.ckpt_path} and {what}: it goes on from its own checkpoint; leave it out")


def _run_dir_of(file: str | None) -> str | None:
    """Return what a --config says of run_dir; the parser speaks about what cannot be read."""
    try:
        content = yaml_value(Path(file or "").read_text())
    except (OSError, ValueError):
        return None
    found = content.get("run_dir") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None
