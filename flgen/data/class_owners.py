"""Who holds which classes, and how many samples of each: the pathological partition in numbers."""

from __future__ import annotations

import math

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")


def balanced_owners(clients: int, per_client: int, classes: int, generator: np.random.Generator) -> list[list[int]]:
    """Return the owners of each class where each client takes those with the fewest so far, ties broken at random.

    Args:
        clients: Number of clients.
        per_client: Classes of each.
        classes: Number of classes, at least `per_client`.
        generator: Source of the choices.
    """
    owners: list[list[int]] = [[] for _ in range(classes)]
    for client in range(clients):
        order = np.lexsort((generator.random(classes), np.array([len(of_class) for of_class in owners])))
        for chosen in order[:per_client]:
            owners[chosen].append(client)
    return owners


def block_owners(clients: int, per_client: int, classes: int) -> list[list[int]]:
    """Return the owners of each class, where classes go in their order to the first clients that still have room.

    A class has at most ceil(clients * per_client / classes) owners; the last classes have none if all clients are full,
    and the last clients have fewer than `per_client` if classes are used up.

    Args:
        clients: Number of clients.
        per_client: Classes for which each has room.
        classes: Number of classes, at least `per_client`.

    Source: fedktl.md, section 4.
    """
    most = -(-clients * per_client // classes)
    room = [per_client] * clients
    owners = []
    for _ in range(classes):
        of_class = [client for client, left in enumerate(room) if left][:most]
        for client in of_class:
            room[client] -= 1
        owners.append(of_class)
    return owners


def unbalanced_sizes(samples: int, owners: int, least: float, generator: np.random.Generator) -> np.ndarray | None:
    """Draw how many samples of a class each owner gets: all but the last from [max(mean / 10, least), mean), uniformly.

    Args:
        samples: Of the class.
        owners: How many clients share them, at least 1.
        least: What each of them is to get at least.
        generator: Source of the draws.

    Returns:
        int64 array (owners,) with the sum `samples`; None if there are too few of them.

    Source: fedktl.md, section 4.
    """
    low, high = math.ceil(max(samples / owners / 10, least)), math.ceil(samples / owners)
    if owners > 1 and low >= high:
        return None
    drawn = generator.integers(low, high, owners - 1) if owners > 1 else np.empty(0, dtype=np.int64)
    return np.append(drawn, samples - drawn.sum())
