"""The graph of pair masks is regular, connected, sparse for many clients, and another one in every round."""

from __future__ import annotations

import math

import networkx
import pytest
from scipy.stats import hypergeom

from flgen.federation.streams import RandomStreams
from flgen.privacy.pairing_graph import is_connected, pairing_graph
from flgen.privacy.secure_aggregation import SecureAggregation

STREAMS = RandomStreams(3)


@pytest.mark.parametrize(("clients", "degree"), [(1, 0), (2, 1), (5, 4), (40, 18), (101, 21), (20, 3), (21, 3)])
def test_everybody_has_the_same_number_of_neighbours_and_reaches_everybody(clients: int, degree: int) -> None:
    cohort = [7 * number + 2 for number in range(clients)]
    graph = pairing_graph(cohort, degree, STREAMS, 1)
    assert list(graph) == cohort
    assert {len(neighbours) for neighbours in graph.values()} == {degree + clients * degree % 2}
    edges = networkx.Graph(graph)
    assert networkx.is_connected(edges)
    assert all(u in graph[v] and list(graph[u]) == sorted(graph[u]) for u in graph for v in graph[u])
    assert networkx.number_of_selfloops(edges) == 0


def test_the_graph_is_the_rounds_and_the_seeds() -> None:
    cohort = range(40)
    first = pairing_graph(cohort, 18, STREAMS, 1)
    assert pairing_graph(reversed(cohort), 18, STREAMS, 1) == first
    assert pairing_graph(cohort, 18, STREAMS, 2) != first
    assert pairing_graph(cohort, 18, RandomStreams(4), 1) != first


def test_the_default_degree_keeps_what_its_docstring_says() -> None:
    """Bounds over all neighbourhoods, who fails or colludes being drawn at random."""
    options = SecureAggregation()
    assert [options.degree(n) for n in (1, 2, 10, 32, 33, 100, 1000)] == [0, 1, 9, 31, 18, 21, 30]
    n = 100
    m = options.degree(n) + 1
    t = options.needed(m)
    lost_round = n * hypergeom.sf(m - t, n, n // 10, m)
    opened = n * hypergeom.sf(t - 1, n - 1, n // 5, m - 1)
    assert lost_round < 0.01
    assert opened < 1e-6
    assert options.degree(n) < 4 * math.log2(n)


def test_who_reaches_each_other_by_way_of_a_client_that_left_is_not_connected() -> None:
    chain = {1: (2,), 2: (1, 3), 3: (2, 4), 4: (3,)}
    assert is_connected(chain, (1, 2, 3, 4))
    assert is_connected(chain, (2, 3, 4))
    assert is_connected(chain, (4,))
    assert not is_connected(chain, (1, 3, 4))
    assert not is_connected(chain, (1, 4))
