"""One number for all clients from one number of each: the mean, and for test results also the spread and the pool."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

TESTED = "test/"
"""Metrics whose name begins so are results on a client's own test data."""

MEANS_OVER_SAMPLES = ("accuracy_", "loss_")
"""How the names of results on a client's own samples begin that are means over these, so that clients can be pooled."""


def over_clients(
    reported: Mapping[int, Mapping[str, float]], samples: Mapping[str, Mapping[int, int]] | None = None
) -> dict[str, float]:
    """Return the mean of each metric over the clients that report it, every client with the same weight.

    A metric `test/accuracy` also gives `test/std/accuracy`, the standard deviation over clients (of the population),
    and `test/worst_decile/accuracy`, the mean over the tenth of the clients, rounded up, that has the lowest values
    (of a loss: the highest). Accuracy and loss on a client's own data, such as `test/accuracy_trained`, also give
    `test/pooled/accuracy_trained`, that of all samples together (fedktl.md, section 4).

    Args:
        reported: Metrics by name, by client id; values are added in the order of ids.
        samples: Number of samples that each client was measured on, by its id, by the part of its data: "test", "val".
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
        summary.update(_pooled(name, reported, samples or {}))
    return summary


def _pooled(
    name: str, reported: Mapping[int, Mapping[str, float]], samples: Mapping[str, Mapping[int, int]]
) -> dict[str, float]:
    """Return sum_k n_k m_k / sum_k n_k of a metric that is a mean over samples, under its name; nothing of others."""
    part, _, short = name.partition("/")
    if part not in samples or not short.startswith(MEANS_OVER_SAMPLES):
        return {}
    counts = {client: samples[part].get(client, 0) for client in sorted(reported) if name in reported[client]}
    total = sum(counts.values())
    if total == 0:
        return {}
    return {f"{part}/pooled/{short}": sum(n * reported[client][name] for client, n in counts.items()) / total}
