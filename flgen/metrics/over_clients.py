"""One number for all clients from one number of each: the mean, and for test results also the spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

TESTED = "test/"
"""Metrics whose name begins so are results on a client's own test data."""


def over_clients(reported: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the clients that report it, every client with the same weight.

    A metric `test/accuracy` also gives `test/std/accuracy`, the standard deviation over clients (of the population),
    and `test/worst_decile/accuracy`, the mean over the tenth of the clients, rounded up, that has the lowest values
    (of a loss: the highest).

    Args:
        reported: Metrics by name, by client id; values are added in the order of ids.
    """
    names = {name: None for client in sorted(reported) for name in reported[client]}
    summary = {}
    for name in names:
        values = [reported[client][name] for client in sorted(reported) if name in reported[client]]
        summary[name] = sum(values) / len(values)
        if name.startswith(TESTED):
            short = name.removeprefix(TESTED)
            worst_first = sorted(values, reverse="loss" in short)
            summary[f"{TESTED}std/{short}"] = statistics.pstdev(values)
            summary[f"{TESTED}worst_decile/{short}"] = statistics.fmean(worst_first[: -(-len(values) // 10)])
    return summary
