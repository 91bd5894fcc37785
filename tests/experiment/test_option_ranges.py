"""Options whose numbers are out of their range."""

from __future__ import annotations

from typing import Any

import pytest

from flgen.errors import UsageError
from flgen.experiment import option_ranges

NAN = float("nan")


def test_the_borders_belong_where_they_should_and_what_is_not_given_passes() -> None:
    option_ranges.at_least("method", 1, epochs=1, pulls=1.5, neighbours=None)
    option_ranges.at_least("method", 0, mu=0.0)
    option_ranges.above_0("method", temperature=1e-9, tau=None, devices="auto")
    option_ranges.shares("method", validation_fraction=0.999, other=None)


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (lambda: option_ranges.at_least("method", 2, steps=2, epochs=1), "--method.epochs is 1: give 2 or more"),
        (lambda: option_ranges.at_least("method", 0, mu=-0.1), "--method.mu is -0.1: give 0 or more"),
        (lambda: option_ranges.at_least("method", 0, mu=NAN), "--method.mu is nan: give 0 or more"),
        (lambda: option_ranges.above_0("method", tau=0.0), "--method.tau is 0.0: give a number above 0"),
        (lambda: option_ranges.above_0("method", tau=NAN), "--method.tau is nan: give a number above 0"),
        (lambda: option_ranges.above_0("trainer", "seconds", wait=0), "--trainer.wait is 0: give seconds above 0"),
        (lambda: option_ranges.shares("method", part=1.0), "--method.part is 1.0: give a share between 0 and 1"),
        (lambda: option_ranges.shares("method", part=0), "--method.part is 0: give a share between 0 and 1"),
    ],
)
def test_a_number_out_of_its_range_is_one_line_with_the_option_as_typed(refuse: Any, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        refuse()
    assert str(raised.value) == message
