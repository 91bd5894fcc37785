"""`flgen plot`: the figures of finished runs, and of a configuration's graphs, as PNG and SVG."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from flgen.errors import UsageError

KINDS = {
    "accuracy": "local test accuracy over the rounds of some runs, after aggregation and after training",
    "amount": "accuracy against the amount of synthetic data, before and after federated training",
    "communication": "accuracy over the bytes exchanged, and the bytes until a target is reached",
    "comparison": "the final and the best accuracy of some runs, as bars and as a table",
    "costs": "what a round sends up and down, beside the method's formula, as bars and as a table",
    "diversity": "gradient diversity over the rounds of some runs",
    "masks": "label similarity beside mask distance of the clients of one run",
    "pairs": "the pictures that the clients of one run were sent of each class, over rounds",
    "participants": "accuracy after the last round against the clients per round",
    "prism": "FID over uplink bytes, mask distance, density per layer and samples of some runs",
    "topology": "the graphs that a configuration draws in its first rounds",
}
"""What each figure shows; this package has a module of the same name for each."""

_LINES = "\n".join(f"  {kind:<15}{purpose}" for kind, purpose in KINDS.items())

HELP = f"""\
usage: flgen plot KIND [options]

Draw a figure and save it as PNG and SVG.

kinds:
{_LINES}

`flgen plot KIND --help` lists the options of each.
"""


def run(arguments: list[str]) -> int:
    """Draw the graphs of a configuration's first rounds, or figures of finished runs.

    Args:
        arguments: The kind and its options.

    Raises:
        UsageError: The request is wrong.
        FlgenError: A run lacks what the figure shows, or a file cannot be read or written.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    for file in _kind(arguments[0])(arguments[1:]):
        print(f"{file.suffix[1:]}: {file}")
    return 0


def _kind(name: str) -> Callable[[list[str]], Iterable[Path]]:
    if name not in KINDS:
        close = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KINDS)}"
        raise UsageError(f"flgen plot {name}: there is no such figure; {hint}")
    draw: Callable[[list[str]], Iterable[Path]] = importlib.import_module(f"flgen.commands.plot.{name}").draw
    return draw
