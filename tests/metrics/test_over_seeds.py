"""Means and sample standard deviations over seeds."""

from __future__ import annotations

import math

import pytest

from flgen.metrics.over_seeds import over_seeds


def test_the_deviation_is_that_of_a_sample() -> None:
    # gptfl.md, section 10, check 12
    spread = over_seeds([80.1, 81.0, 80.4])
    assert spread.mean == pytest.approx(80.5, abs=1e-9)
    assert spread.std == pytest.approx(0.4582575695, abs=1e-9)
    assert spread.n == 3


def test_one_seed_has_no_deviation() -> None:
    spread = over_seeds([0.8])
    assert (spread.mean, spread.n) == (0.8, 1)
    assert math.isnan(spread.std)


def test_what_is_not_finite_has_a_mean_and_no_deviation() -> None:
    spread = over_seeds([1.0, math.inf])
    assert (spread.mean, spread.n) == (math.inf, 2)
    assert math.isnan(spread.std)
