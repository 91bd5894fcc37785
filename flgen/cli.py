"""The command line. Torch is imported only after the arguments are known to be right."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import flgen
from flgen.errors import FlgenError, UsageError

COMMANDS = {
    "pipeline": "run the stages of one configuration, from labels to federated training",
    "pretrain": "train a model on the server, before clients take it up",
    "fit": "train a method over many clients",
    "sweep": "list or run the configurations of a sweep file",
    "evaluate": "measure a checkpoint",
    "sample": "draw images from a checkpoint or a ticket",
    "export": "write a finished generator as a small file, a ticket",
    "partition": "divide a data set among clients, as shards or as a chart",
    "labels": "find out which labels the clients have, and not who has them",
    "prompts": "write prompts for labels, from templates or by a language model",
    "generator": "train a small text-to-image pipeline, to stand in for a pre-trained one",
    "synthesize": "generate labelled samples from prompts",
    "privacy": "say how much noise a privacy budget takes",
    "plot": "draw figures of runs, or the graphs of a configuration",
    "report": "write one page about runs: curves, samples, clients, communication, events",
}
"""What each command does; `flgen/commands/` has a file of the same name for each."""

_LINES = "\n".join(f"  {name:<12}{purpose}" for name, purpose in COMMANDS.items())

SUMMARY = f"""\
usage: flgen COMMAND [options]

Federated training of generative and personalised models (version {flgen.__version__}).

commands:
{_LINES}

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
        # A class of one's own lies in the working folder: --method my_method.MyMethod. It comes last: a file of the
        # name of a package, in a folder that somebody else has filled, does not take the package's place.
        sys.path.append("")
    try:
        return _command(arguments[0])(arguments[1:])
    except FlgenError as error:
        if os.environ.get("FLGEN_TRACEBACK"):
            traceback.print_exc()
        if str(error):  # a rank that failed has already said why
            print(f"flgen: error: {_on_one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("flgen: interrupted before the run started", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return _on_one_line(super().formatMessage(record))


def _on_one_line(text: str) -> str:
    """Return a text as a terminal may have it: what it quotes of a file neither breaks the line nor steers anything."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else ascii(sign)[1:-1] for sign in text)


def _set_up_logging() -> None:
    """Show flgen's own messages, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("flgen: %(message)s"))
    log = logging.getLogger("flgen")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}; {hint}")
    run: Callable[[list[str]], int] = importlib.import_module(f"flgen.commands.{name}").run
    return run


if __name__ == "__main__":
    sys.exit(main())
