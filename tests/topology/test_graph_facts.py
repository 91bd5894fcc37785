"""Numbers of a graph against closed forms and against networkx."""

from __future__ import annotations

import math

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.federation.streams import RandomStreams
from flgen.topology import FullyConnected, RandomGraph, Ring
from flgen.topology.graph_facts import graph_facts

STREAMS = RandomStreams(0)


@pytest.mark.parametrize("clients", [2, 3, 10, 101])
def test_a_full_graph_averages_in_one_step(clients: int) -> None:
    facts = graph_facts(FullyConnected().sources(1, clients, STREAMS))
    assert facts.pop("graph/spectral_gap") == pytest.approx(1, abs=1e-6)
    assert facts == {
        "graph/edges": clients * (clients - 1),
        "graph/in_degree_mean": clients - 1,
        "graph/out_degree_max": clients - 1,
        "graph/connected": 1.0,
        "graph/diameter": 1,
    }


@pytest.mark.parametrize("clients", [3, 4, 5, 12, 101])
def test_a_rings_gap_is_that_of_a_circulant_matrix(clients: int) -> None:
    facts = graph_facts(Ring().sources(1, clients, STREAMS))
    eigenvalues = [(1 + 2 * math.cos(2 * math.pi * j / clients)) / 3 for j in range(1, clients)]
    assert facts["graph/spectral_gap"] == pytest.approx(1 - max(map(abs, eigenvalues)), abs=1e-9)
    assert facts["graph/diameter"] == clients // 2
    assert facts["graph/edges"] == 2 * clients
    assert facts["graph/in_degree_mean"] == facts["graph/out_degree_max"] == 2


def test_two_islands_never_agree_and_have_no_diameter() -> None:
    assert graph_facts([(1,), (0,), (3,), (2,)]) == {
        "graph/edges": 4,
        "graph/in_degree_mean": 1,
        "graph/out_degree_max": 1,
        "graph/connected": 0.0,
        "graph/spectral_gap": pytest.approx(0, abs=1e-9),
    }


def test_a_star_of_readers_is_not_connected_because_nobody_answers() -> None:
    # 1, 2 and 3 read from 0; every one of them keeps half of its own, 0 keeps all of its own.
    assert graph_facts([(), (0,), (0,), (0,)]) == {
        "graph/edges": 3,
        "graph/in_degree_mean": 0.75,
        "graph/out_degree_max": 3,
        "graph/connected": 0.0,
        "graph/spectral_gap": pytest.approx(0.5),
    }


def test_a_directed_circle_takes_all_steps_round() -> None:
    facts = graph_facts([(4,), (0,), (1,), (2,), (3,)])
    assert facts["graph/connected"] == 1.0
    assert facts["graph/diameter"] == 4
    assert facts["graph/spectral_gap"] == pytest.approx(1 - math.cos(math.pi / 5))  # |1 + exp(2 pi i / 5)| / 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 15), st.integers(0, 1000), st.floats(0, 0.6))
def test_connectivity_and_diameter_are_those_of_networkx(clients: int, seed: int, density: float) -> None:
    graph = networkx.gnp_random_graph(clients, density, seed=seed, directed=True)
    facts = graph_facts([tuple(sorted(graph.predecessors(k))) for k in range(clients)])
    connected = networkx.is_strongly_connected(graph)
    assert facts["graph/connected"] == connected
    assert facts.get("graph/diameter") == (networkx.diameter(graph) if connected else None)
    assert facts["graph/edges"] == graph.number_of_edges()
    assert facts["graph/out_degree_max"] == max(degree for _, degree in graph.out_degree)
    assert 0 <= facts["graph/spectral_gap"] <= 1 + 1e-9


def test_a_random_graph_spreads_faster_than_a_ring_of_the_same_size() -> None:
    random = graph_facts(RandomGraph(10).sources(1, 100, STREAMS))
    assert random["graph/edges"] == 1000
    assert random["graph/in_degree_mean"] == 10
    assert random["graph/out_degree_max"] > 10
    assert (
        random["graph/spectral_gap"] > 0.5 > 0.01 > graph_facts(Ring().sources(1, 100, STREAMS))["graph/spectral_gap"]
    )


def test_everything_is_a_number_that_a_logger_takes() -> None:
    for sources in ([(1,), (0,)], [()], [(), ()]):
        assert all(type(value) in (int, float) for value in graph_facts(sources).values())
