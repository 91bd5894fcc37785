"""The command line. Torch is imported only after the arguments are known to be right."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import flgen
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from flgen.experiment.config import Configuration, Section

SUMMARY = f"""\
usage: flgen COMMAND [options]

Federated training of generative and personalised models (version {flgen.__version__}).

commands:
  fit         train a method over many clients
  evaluate    measure a checkpoint
  sample      draw images from a checkpoint
  partition   divide a data set among clients, as shards or as a chart
  plot        draw the accuracy or the masks of runs, or the graphs of a configuration

`flgen COMMAND --help` lists a command's options; `flgen COMMAND --model.help ResnetGenerator` those of a class.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for a failed run, 2 for wrong usage, 128 + n for signal n."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(SUMMARY, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"flgen {flgen.__version__}")
        return 0
    _set_up_logging()
    if "" not in sys.path:
        sys.path.insert(0, "")  # a class of one's own lies in the working folder: --method my_method.MyMethod
    try:
        return _command(arguments[0])(arguments[1:])
    except FlgenError as error:
        if os.environ.get("FLGEN_TRACEBACK"):
            traceback.print_exc()
        if str(error):  # a rank that failed has already said why
            print(f"flgen: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("flgen: interrupted before the run started", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


def fit(arguments: list[str]) -> int:
    """Train a method over many clients."""
    configuration = _parse("fit", arguments)
    options, built = configuration.values, _build(configuration)
    result = built.trainer.fit(
        *_what(built),
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


def evaluate(arguments: list[str]) -> int:
    """Measure a checkpoint on this one process."""
    configuration = _parse("evaluate", _with_run_config(arguments))
    options, built = configuration.values, _build(configuration)
    metrics = built.trainer.evaluate(
        *_what(built),
        evaluation=built.evaluation,
        ckpt_path=options.ckpt_path,
        seed_everything=options.seed_everything,
    )
    for name, value in metrics.items():
        print(f"{name} {value:.6g}")
    if options.output is not None:
        _writable(options.output).write_text(json.dumps(metrics, indent=1) + "\n")
    return 0


def sample(arguments: list[str]) -> int:
    """Draw images from a checkpoint."""
    configuration = _parse("sample", _with_run_config(arguments))
    options = configuration.values
    if options.num < 1:
        raise UsageError(f"--num is {options.num}: give 1 or more")
    output = _writable(options.output)
    built = _build(configuration)
    drawn = built.trainer.samples(
        *_what(built), ckpt_path=options.ckpt_path, count=options.num, seed_everything=options.seed_everything
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


def partition(arguments: list[str]) -> int:
    """Divide a data set among clients, as shards or as a chart."""
    configuration = _parse("partition", arguments)
    options = configuration.values
    if options.output is None and options.plot is None:
        raise UsageError("say what to make: --output DIR for shards, --plot FILE.png for a chart, or both")
    chart = None if options.plot is None else _writable(options.plot)
    built = _build(configuration)
    from flgen.federation.streams import RandomStreams

    data, seed = built.data, options.seed_everything
    data.prepare_data()
    data.setup()
    rows = data.split_clients(built.partition, RandomStreams(seed).numpy("partition"))
    if options.output is not None:
        from flgen.data.shards import write_client_shards

        rule = configuration.resolved()["partition"]
        write_client_shards(data, rows, options.output, seed=seed, partitioner=rule)
        print(f"{len(rows)} clients: {options.output}")
    if chart is not None:
        from flgen.figures.partition_chart import draw_partition_chart

        draw_partition_chart(data.label_table(rows), data.class_names, chart)
        print(f"chart: {chart}")
    return 0


def plot(arguments: list[str]) -> int:
    """Draw the graphs of a configuration's first rounds, or figures of finished runs."""
    from flgen.plot import draw

    return draw(arguments, lambda rest: _parse("plot topology", rest))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": fit,
    "evaluate": evaluate,
    "sample": sample,
    "partition": partition,
    "plot": plot,
}


def _set_up_logging() -> None:
    """Show flgen's own messages, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("flgen: %(message)s"))
    log = logging.getLogger("flgen")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}; {hint}")
    return COMMANDS[name]


def _sections() -> list[Section]:
    from flgen.callbacks import Evaluation, RunLogger
    from flgen.data import ImageData, Partitioner
    from flgen.deferred import LightningModule
    from flgen.experiment.config import Section
    from flgen.methods import Method
    from flgen.models import ResnetGenerator  # noqa: F401  (short names are those of classes that are imported)
    from flgen.trainer import FederatedTrainer

    return [
        Section("seed_everything", int, default=0, help="Seed of every random stream."),
        Section("run_dir", str, default="runs/default", help="The run folder."),
        Section("trainer", FederatedTrainer, "options"),
        Section("model", LightningModule, "class", required=True, help="The module that clients train."),
        Section("method", Method, "class", required=True, help="The federated algorithm."),
        Section("data", ImageData, "class", default={"class_path": "Digits"}, help="The data set."),
        Section("partition", Partitioner, "class", default={"class_path": "IID"}, help="How clients share the data."),
        Section("evaluation", Evaluation, "options"),
        Section("loggers", list[RunLogger], default=[], help="Loggers besides metrics.csv."),
        Section(
            "ckpt_path",
            str | None,
            help="Checkpoint folder to start from; `last`, alone or as the end of a path, is the newest good one.",
        ),
    ]


def _parse(command: str, arguments: list[str]) -> Configuration:
    from flgen.experiment.config import build_parser, parse

    sections = _sections()
    parser = build_parser(
        sections, _EXTRA_OPTIONS.get(command, {}), (COMMANDS[command.split()[0]].__doc__ or "").strip()
    )
    parser.prog = f"flgen {command}"
    return parse(parser, arguments, sections)


_EXTRA_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "evaluate": {"output": {"type": str | None, "help": "Also write the metrics to this JSON file."}},
    "sample": {
        "num": {"type": int, "default": 64, "help": "Number of images."},
        "output": {"type": str, "default": "samples.png", "help": "The PNG to write."},
        "kind": {"type": str | None, "help": "Kind of model, such as threshold; the headline kind by default."},
    },
    "partition": {
        "output": {"type": str | None, "help": "Folder for one set of webdataset shards per client."},
        "plot": {
            "type": str | None,
            "nargs": "?",
            "const": "partition.png",
            "help": "PNG for the client-by-class chart (partition.png if no name is given).",
        },
    },
    "plot topology": {
        "rounds": {"type": int, "default": 3, "help": "Number of rounds to draw, from round 1."},
        "output": {"type": str, "default": "topology.png", "help": "The PNG; an SVG of the same name lies beside it."},
    },
}


def _build(configuration: Configuration) -> Namespace:
    """Return the objects of a configuration; a module's initial weights are those of the run's seed."""
    from lightning.fabric import seed_everything

    seed_everything(configuration.values.seed_everything, verbose=False)
    return configuration.build()


def _what(built: Namespace) -> tuple[Any, ...]:
    """The method, model, data and partition that every command of the trainer takes."""
    return built.method, built.model, built.data, built.partition


def _with_run_config(arguments: list[str]) -> list[str]:
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
    return ["--config", str(config), *arguments]


def _writable(path: str) -> Path:
    """Return the path of a file to write, after making sure that its folder can take it."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlgenError(f"{file.parent} cannot be made ({error.strerror}): choose another place") from error
    if not os.access(file.parent, os.W_OK):
        raise FlgenError(f"{file.parent} cannot be written to: choose another place")
    return file


if __name__ == "__main__":
    sys.exit(main())
