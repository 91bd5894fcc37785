"""How the options of one kind of figure are parsed: a mistake is one line."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

from flgen.errors import UsageError


class KindParser(argparse.ArgumentParser):
    """A parser of one kind's options whose mistakes are one line.

    Args:
        kind: What is typed after `flgen plot`.
        description: One line for `--help`.
    """

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(prog=f"flgen plot {kind}", description=description, allow_abbrev=False)

    def add_runs(self) -> None:
        """Add RUN, once or more."""
        self.add_argument(
            "runs",
            metavar="RUN",
            nargs="+",
            help="Run folders. Those called seed-* of one folder are repetitions of each other; the folder itself "
            "stands for all of them.",
        )

    def add_labels(self, help: str = "Names in the legend; the folders' own by default.") -> None:
        """Add --labels."""
        self.add_argument("--labels", nargs="+", metavar="LABEL", help=help)

    def add_metric(self) -> None:
        """Add --metric."""
        self.add_argument(
            "--metric",
            default="test/accuracy",
            help="The column of metrics.csv to draw (test/accuracy by default).",
        )

    def add_output(self, default: str) -> None:
        """Add --output."""
        self.add_argument(
            "--output",
            default=default,
            help=f"The PNG ({default} by default); an SVG of the same name lies beside it.",
        )

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Return the options.

        Raises:
            UsageError: One is unknown or wrong.
        """
        values, unknown = self.parse_known_intermixed_args(arguments)  # options may stand between runs
        if unknown:
            option = unknown[0].partition("=")[0]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            if not option.startswith("-"):
                self.error(f"{option}: there is one RUN for this figure")
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            self.error(f"{option}: there is no such option; {hint}")
        return values

    def error(self, message: str) -> NoReturn:
        """Raise a mistake in place of printing the usage."""
        raise UsageError(f"{self.prog}: {message}")
