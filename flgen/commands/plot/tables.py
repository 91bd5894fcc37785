"""The numbers of a figure as files beside it: CSV to read again, Markdown to paste."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flgen.figures.paper import make_folder, writing


def write_csv(path: Path, rows: Iterable[Sequence[Any]], header: Sequence[str] = ()) -> None:
    """Write plain CSV: integers as they are, floats so that reading gives the same bits.

    Args:
        path: The file; its folder is made if needed.
        rows: The cells.
        header: Names of the columns, if they have any.

    Raises:
        FlgenError: It cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows] if header else rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        FlgenError: It cannot be written.
    """
    make_folder(path.parent)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are also aligned as plain text; all but the first are numbers.

    Args:
        header: Names of the columns.
        rows: The cells; what would end a cell is escaped.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
