"""Held-out splits that depend on the data alone, so that every run and every rank holds out the same images."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")


def check_fraction(fraction: float) -> None:
    """Refuse a `test_fraction` that leaves nothing to train on or nothing to test on.

    Raises:
        UsageError: If `fraction` is not strictly between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise UsageError(f"`--data.test_fraction` is {fraction}; it must lie between 0 and 1, both excluded")


def stratified_holdout(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Hold out the same fraction of every class, chosen at random with a fixed seed.

    Args:
        labels: int array (N,), class ids.
        fraction: Share of each class to hold out; a class of two or more gives at least one and keeps at least one.

    Returns:
        Indices kept and indices held out, int64, both ascending.
    """
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        generator = np.random.default_rng([0, int(label)])
        held_out.append(generator.permutation(members)[:count])
    test = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), test), test


def shuffled_holdout(count: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle `count` indices with a fixed seed and hold out the last `fraction` of them.

    Returns:
        Indices kept and indices held out, int64, both in shuffled order.
    """
    order = np.random.default_rng(0).permutation(count)
    kept = count - round(count * fraction)
    return order[:kept], order[kept:]
