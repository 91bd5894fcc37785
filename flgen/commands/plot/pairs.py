"""`flgen plot pairs`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import run_folder
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import read_partition
from flgen.experiment.runs import RunFolder

MOST_ROUNDS = 8
MOST_CLASSES = 20
FILE = re.compile(r"round-(\d+)\.png")


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the pictures that a run's clients were sent of each class, over rounds; return the files."""
    parser = KindParser("pairs", "Draw the pictures that the clients of a run were sent of each class, over rounds.")
    parser.add_argument("run", metavar="RUN", help="The run folder.")
    parser.add_argument(
        "--rounds",
        type=int,
        nargs="+",
        metavar="ROUND",
        help=f"The rounds to draw; by default at most {MOST_ROUNDS}, evenly chosen among those that were evaluated.",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help=f"The classes to draw; by default all, or the first {MOST_CLASSES} of them.",
    )
    parser.add_output("pairs.png")
    options = parser.parse(arguments)

    from flgen.figures.class_pictures import draw_class_pictures
    from flgen.figures.paper import figure_files
    from flgen.figures.picture_row import read_picture_row

    figure_files(options.output)  # a wrong name is told before the run is read
    run = RunFolder(run_folder(options.run))
    files = _files(run)
    all_names, _ = read_partition(run.partition)
    rounds = _evenly(sorted(files)) if options.rounds is None else _known(options.rounds, files, run)
    drawn, note = _classes(all_names, options.classes)
    rows = {t: read_picture_row(files[t], len(all_names)) for t in rounds}
    figures = draw_class_pictures(rows, {label: all_names[label] for label in drawn}, options.output, note=note)
    if note:
        print(f"{note}; --classes names others")
    return figures


def _files(run: RunFolder) -> dict[int, Path]:
    """Return the rows of pictures of a run by round."""
    found = {int(name[1]): path for path in run.pairs.glob("*.png") if (name := FILE.fullmatch(path.name))}
    if not found:
        raise FlgenError(
            f"{run.path} has no pictures of classes ({run.pairs.name}/round-*.png): choose a run of a method whose "
            "server sends some, such as FedKTL, with the callback ClassPictures"
        )
    return found


def _evenly(rounds: Sequence[int]) -> list[int]:
    """Return at most MOST_ROUNDS of some ascending rounds, evenly spaced, the first and the last among them."""
    last = min(MOST_ROUNDS, len(rounds)) - 1
    return [rounds[place * (len(rounds) - 1) // max(last, 1)] for place in range(last + 1)]


def _known(rounds: Sequence[int], files: dict[int, Path], run: RunFolder) -> list[int]:
    for t in rounds:
        if t not in files:
            nearest = min(files, key=lambda other: (abs(other - t), other))
            raise UsageError(
                f"--rounds {t}: {run.pairs} has no such round, the nearest is {nearest}; it has one per evaluation "
                "(--evaluation.every)"
            )
    return sorted(set(rounds))


def _classes(names: Sequence[str], asked: Sequence[str] | None) -> tuple[list[int], str]:
    """Return which classes are drawn, and what must be said if it is not all that might be meant."""
    if asked is None:
        cut = len(names) > MOST_CLASSES
        return list(range(len(names)))[
            :MOST_CLASSES
        ], f"the first {MOST_CLASSES} of {len(names)} classes" if cut else ""
    for name in asked:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names[:MOST_CLASSES])}"
            raise UsageError(f"--classes {name}: the run has no such class; {hint}")
    if len(asked) > MOST_CLASSES:
        raise UsageError(f"--classes names {len(asked)}: give at most {MOST_CLASSES}, so that pictures can be seen")
    return list(dict.fromkeys(names.index(name) for name in asked)), ""
