"""A random regular graph gives every node the same number of neighbours, sparse or nearly complete."""

from __future__ import annotations

import networkx
import pytest

from flgen.federation.regular_graph import random_regular_graph


@pytest.mark.parametrize(("degree", "nodes"), [(0, 1), (3, 10), (7, 10), (9, 10), (38, 40), (21, 100)])
def test_every_node_has_the_degree(degree: int, nodes: int) -> None:
    graph = random_regular_graph(degree, nodes, seed=1)
    assert sorted(graph) == list(range(nodes))
    assert {len(graph[node]) for node in graph} == {degree}
    assert networkx.number_of_selfloops(graph) == 0


def test_the_seed_makes_the_graph() -> None:
    edges = [set(random_regular_graph(4, 20, seed).edges) for seed in (1, 1, 2)]
    assert edges[0] == edges[1] != edges[2]
