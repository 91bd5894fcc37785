"""One number for several runs that differ in their seed alone: mean and sample standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """What several seeds gave.

    Args:
        mean: Their mean.
        std: Their sample standard deviation (divided by n - 1); NaN of one value, or of values that are not finite.
        n: Number of values.
    """

    mean: float
    std: float
    n: int


def over_seeds(values: Sequence[float]) -> Spread:
    """Return mean, sample standard deviation and number of values, one per seed (gptfl.md, section 7.1)."""
    mean = statistics.fmean(values)
    if len(values) == 1 or not math.isfinite(mean):
        return Spread(mean, math.nan, len(values))
    return Spread(mean, statistics.stdev(values), len(values))
