"""The numbers of a figure as CSV and as Markdown."""

from __future__ import annotations

import math

import pytest

from flgen.commands.plot.tables import markdown_table, write_csv
from flgen.errors import FlgenError


def test_csv_keeps_every_bit_and_quotes_what_needs_it(tmp_path) -> None:
    write_csv(tmp_path / "new" / "a.csv", [("a,b", 1, 0.1 + 0.2), ("c", 2, math.inf)], ("run", "n", "x"))
    assert (tmp_path / "new" / "a.csv").read_text() == 'run,n,x\n"a,b",1,0.30000000000000004\nc,2,inf\n'


def test_markdown_is_aligned_and_a_bar_ends_no_cell() -> None:
    assert markdown_table(("run", "final"), [("a|b", "1"), ("FedAvg", "80.50 ± 0.46")]) == (
        "| run    |        final |\n| ------ | -----------: |\n| a\\|b   |            1 |\n| FedAvg | 80.50 ± 0.46 |\n"
    )


def test_a_place_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlgenError, match=r"cannot be made .*: choose another --output$"):
        write_csv(tmp_path / "file" / "a.csv", [(1,)])
