"""Work on one thread per core."""

from __future__ import annotations

import pytest

from flgen.data.threads import for_each_row
from flgen.errors import FlgenError


@pytest.mark.parametrize("rows", [0, 1, 64, 200])
def test_every_row_is_worked_on_once(rows):
    seen: list[int] = []
    for_each_row(rows, seen.append)
    assert sorted(seen) == list(range(rows))


def test_the_first_error_ends_it():
    def work(row: int) -> None:
        if row == 3:
            raise FlgenError("row 3 is damaged")

    with pytest.raises(FlgenError, match="row 3"):
        for_each_row(1000, work)
