"""Who has pair masks with whom: a sparse random graph, so that a hundred clients stay affordable.

Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020 (SecAgg+).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count

import networkx

from flgen.federation.regular_graph import random_regular_graph
from flgen.federation.streams import RandomStreams


def pairing_graph(cohort: Sequence[int], degree: int, streams: RandomStreams, round: int) -> dict[int, tuple[int, ...]]:
    """Return the neighbours of each client, ascending, in a connected random graph from a round's public randomness.

    In a graph of two parts the masks of each would cancel by themselves, and the server would see two sums.

    Args:
        cohort: The clients' ids.
        degree: Neighbours of each; one more where no graph gives an odd number of clients an odd number of them.
        streams: Public randomness; it must not be known before the coalition has formed.
        round: Names the draw.
    """
    ids = sorted(cohort)
    n = len(ids)
    degree = degree + n * degree % 2
    for attempt in count():
        graph = random_regular_graph(degree, n, streams.seed_for(f"pairing graph/{attempt}", round=round))
        if networkx.is_connected(graph):  # at degree 3 and more the first one nearly always is
            break
    return {ids[k]: tuple(sorted(ids[j] for j in graph[k])) for k in range(n)}


def is_connected(neighbours: Mapping[int, Collection[int]], clients: Collection[int]) -> bool:
    """Return whether some clients, not none, reach each other in a graph without passing by one of the others.

    Args:
        neighbours: Of each client, by id.
        clients: Ids of some of them.
    """
    edges = {u: [v for v in neighbours[u] if v in clients] for u in clients}
    return bool(networkx.is_connected(networkx.Graph(edges)))
