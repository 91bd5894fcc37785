"""`flgen report`."""

from __future__ import annotations

from pathlib import Path

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import SEEDS, find_experiments, is_run
from flgen.errors import FlgenError

NAME = "report.html"


def run(arguments: list[str]) -> int:
    """Write one page about runs.

    Args:
        arguments: The run folders and the options.

    Raises:
        UsageError: The request is wrong.
        FlgenError: A folder is no run, a run is damaged, or the page cannot be written.
    """
    parser = KindParser(
        "", "Write one HTML file about runs: what ran, curves, samples, clients, communication, events."
    )
    parser.prog = "flgen report"
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="Run folders. A folder of seeds (seed-*) is one run with a band; a folder of other runs, such as a "
        "sweep's, stands for all of them.",
    )
    parser.add_labels("Names on the page; the folders' own by default.")
    parser.add_argument(
        "--output",
        help=f"The HTML file; by default {NAME} in the folder that is given, or in this one if several are. A report "
        "that is there is replaced, anything else is not.",
    )
    options = parser.parse(arguments)
    single = Path(options.runs[0]) if len(options.runs) == 1 else Path()
    output = single / NAME if options.output is None else Path(options.output)
    experiments = find_experiments([run for given in options.runs for run in _expanded(given)], options.labels)

    from flgen.figures.report.page import write_report

    write_report({one.label: one.runs for one in experiments}, output)
    print(f"report: {output}")
    return 0


def _expanded(given: str) -> list[str]:
    """Return the runs and the folders of seeds that a folder stands for: itself, or all that lie in it."""
    folder = Path(given)
    if not folder.is_dir() or is_run(folder) or any(map(is_run, folder.glob(SEEDS))):
        return [given]
    try:
        below = sorted((path for path in folder.iterdir() if path.is_dir()), key=_in_order)
    except OSError as error:
        raise FlgenError(f"{folder} cannot be read ({error.strerror}): give a run folder") from error
    found = [str(path) for path in below if is_run(path) or any(map(is_run, path.glob(SEEDS)))]
    return found or [given]


def _in_order(path: Path) -> tuple[int, str]:
    """Return a key that puts 2 before 10."""
    digits = path.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1, path.name
