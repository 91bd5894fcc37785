"""Who reads from whom: exact degrees, nobody itself, the same graph for the same seed, and clear refusals."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flgen.errors import UsageError
from flgen.federation.streams import RandomStreams
from flgen.topology import FixedGraph, FullyConnected, NoEdges, PeerTopology, RandomGraph, Ring

quick = settings(max_examples=60, deadline=None, derandomize=True)
STREAMS = RandomStreams(7)
seeds, rounds, sizes = st.integers(0, 2**31), st.integers(1, 1000), st.integers(3, 24)


@st.composite
def topologies(draw: st.DrawFn, clients: int, active: float = 1.0) -> PeerTopology:
    """Any topology that connects so many clients."""
    degree = draw(st.integers(1, clients - 1))
    kinds = [
        Ring(active),
        FullyConnected(active),
        RandomGraph(degree, active=active),
        RandomGraph(degree, replace=True, active=active),
        FixedGraph(networkx.gnp_random_graph(clients, 0.5, seed=degree, directed=True), active),
    ]
    if degree * clients % 2 == 0:
        kinds.append(RandomGraph(degree, directed=False, active=active))
    return draw(st.sampled_from(kinds))


@quick
@given(st.data(), sizes, seeds, rounds)
def test_sources_are_ascending_clients_and_nobody_is_its_own(
    data: st.DataObject, clients: int, seed: int, t: int
) -> None:
    graph = data.draw(topologies(clients)).sources(t, clients, RandomStreams(seed))
    assert len(graph) == clients
    for k, sources in enumerate(graph):
        assert k not in sources
        assert sources == tuple(sorted(set(sources)))
        assert set(sources) <= set(range(clients))
        assert all(type(j) is int for j in sources)


@quick
@given(st.data(), sizes, seeds, rounds, st.floats(0.05, 0.95))
def test_an_inactive_client_reads_from_nobody_and_nobody_reads_from_it(
    data: st.DataObject, clients: int, seed: int, t: int, active: float
) -> None:
    topology = data.draw(topologies(clients, active))
    streams = RandomStreams(seed)
    dropped = topology.sources(t, clients, streams)
    topology.active = 1.0
    whole = topology.sources(t, clients, streams)
    present = {k for k in range(clients) if streams.numpy("active", round=t, client=k).random() < active}
    for k in range(clients):
        # Nobody draws again for one that is away.
        assert dropped[k] == (tuple(j for j in whole[k] if j in present) if k in present else ())


def test_the_share_of_active_clients_is_the_one_asked_for() -> None:
    graphs = [FullyConnected(active=0.7).sources(t, 50, STREAMS) for t in range(1, 41)]
    share = np.mean([bool(sources) for graph in graphs for sources in graph])
    assert share == pytest.approx(0.7, abs=0.03)  # 2000 draws: a standard deviation of 0.01
    assert len({tuple(map(bool, graph)) for graph in graphs}) == 40


@quick
@given(st.data(), sizes, seeds, rounds)
def test_a_random_graph_has_exactly_the_degree(data: st.DataObject, clients: int, seed: int, t: int) -> None:
    degree = data.draw(st.integers(1, clients - 1))
    streams = RandomStreams(seed)
    assert [len(sources) for sources in RandomGraph(degree).sources(t, clients, streams)] == [degree] * clients
    assume(degree * clients % 2 == 0)
    graph = RandomGraph(degree, directed=False).sources(t, clients, streams)
    assert [len(sources) for sources in graph] == [degree] * clients
    assert all(k in graph[j] for k in range(clients) for j in graph[k])


@quick
@given(st.data(), sizes, seeds, rounds)
def test_with_replacement_a_client_drawn_twice_counts_once(
    data: st.DataObject, clients: int, seed: int, t: int
) -> None:
    degree = data.draw(st.integers(1, clients - 1))
    graph = RandomGraph(degree, replace=True).sources(t, clients, RandomStreams(seed))
    assert all(1 <= len(sources) <= degree for sources in graph)


def test_with_replacement_the_mean_in_degree_is_that_of_the_birthday_problem() -> None:
    graphs = [RandomGraph(10, replace=True).sources(t, 11, STREAMS) for t in range(1, 201)]
    mean = np.mean([len(sources) for graph in graphs for sources in graph])
    assert mean == pytest.approx(10 * (1 - 0.9**10), abs=0.1)  # 2200 draws: a standard deviation of 0.02


@quick
@given(st.data(), sizes, seeds, rounds)
def test_equal_seeds_give_equal_graphs_whatever_the_runs_seed(
    data: st.DataObject, clients: int, seed: int, t: int
) -> None:
    topology = data.draw(topologies(clients, active=0.8))
    of_run = topology.sources(t, clients, RandomStreams(seed))
    assert topology.sources(t, clients, RandomStreams(seed)) == of_run
    topology.seed = seed
    assert topology.sources(t, clients, RandomStreams(seed + 1)) == of_run


@pytest.mark.parametrize("options", [{}, {"replace": True}, {"directed": False}])
def test_rounds_and_seeds_give_graphs_of_their_own(options: dict[str, Any]) -> None:
    def graph(t: int, seed: int) -> tuple[tuple[int, ...], ...]:
        return tuple(RandomGraph(3, **options).sources(t, 20, RandomStreams(seed)))

    assert len({graph(t, seed) for t in range(1, 6) for seed in range(5)}) == 25


def test_a_clients_draw_is_its_own_stream_and_nothing_else() -> None:
    class Watched(RandomStreams):
        def seed_for(self, purpose: str, *, round: int = 0, client: int | None = None) -> int:
            asked.append((purpose, round, client))
            return super().seed_for(purpose, round=round, client=client if client != 4 else 1000)

    asked: list[tuple[str, int, int | None]] = []
    before = RandomGraph(5).sources(3, 12, STREAMS)
    after = RandomGraph(5).sources(3, 12, Watched(7))
    assert asked == [("graph", 3, k) for k in range(12)]
    assert [k for k in range(12) if before[k] != after[k]] == [4]


def test_every_other_client_is_drawn_equally_often() -> None:
    drawn = Counter(j for t in range(1, 2001) for j in RandomGraph(2).sources(t, 5, STREAMS)[2])
    assert sorted(drawn) == [0, 1, 3, 4]
    assert all(abs(count - 1000) < 110 for count in drawn.values())  # a standard deviation of 22


def test_the_busiest_of_a_hundred_clients_has_eighteen_readers_on_average() -> None:
    graphs = [RandomGraph(10).sources(t, 100, STREAMS) for t in range(1, 101)]
    largest = [max(Counter(j for sources in graph for j in sources).values()) for graph in graphs]
    assert np.mean(largest) == pytest.approx(18.2, abs=0.5)  # 100 rounds: a standard deviation of 0.15


def test_a_symmetric_graph_uses_every_edge_equally_often() -> None:
    for degree in (2, 5):  # one drawn directly, one by the edges it leaves out
        topology = RandomGraph(degree, directed=False)
        edges = Counter(
            (k, j) for t in range(1, 401) for k, row in enumerate(topology.sources(t, 8, STREAMS)) for j in row
        )
        assert len(edges) == 56
        expected = 400 * degree / 7
        assert max(abs(count - expected) for count in edges.values()) < 5 * np.sqrt(expected * (1 - degree / 7))


@pytest.mark.parametrize("degree", [50, 97, 98, 99])
def test_a_nearly_complete_symmetric_graph_is_drawn_at_once(degree: int) -> None:
    # A search that matches edge ends until it succeeds would not come back.
    graph = RandomGraph(degree, directed=False).sources(1, 100, STREAMS)
    assert [len(sources) for sources in graph] == [degree] * 100
    assert all(k in graph[j] for k in range(100) for j in graph[k])


def test_rings_and_full_graphs_are_what_they_are_called() -> None:
    assert Ring().sources(1, 5, STREAMS) == [(1, 4), (0, 2), (1, 3), (2, 4), (0, 3)]
    assert Ring().sources(1, 3, STREAMS) == FullyConnected().sources(9, 3, STREAMS) == [(1, 2), (0, 2), (0, 1)]
    assert FullyConnected().sources(1, 2, STREAMS) == [(1,), (0,)]
    assert NoEdges().sources(1, 3, STREAMS) == [(), (), ()]


@pytest.mark.parametrize(
    ("topology", "clients", "message"),
    [
        (Ring(), 2, "a Ring needs 3 clients, --partition.clients is 2: use FullyConnected"),
        (FullyConnected(), 1, "FullyConnected connects clients, and --partition.clients is 1: give 2 or more"),
        (RandomGraph(), 1, "RandomGraph connects clients, and --partition.clients is 1"),
        (RandomGraph(), 10, "degree is 10, but 10 clients have at most 9 others: lower it, or use FullyConnected"),
        (RandomGraph(5, replace=True), 5, "degree is 5, but 5 clients"),
        (RandomGraph(3, directed=False), 5, "no symmetric graph gives 5 clients 3 neighbours each"),
    ],
)
def test_impossible_federations_are_refused(topology: PeerTopology, clients: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        topology.check(clients)
    topology.check(clients + 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 0}, "--method.topology.degree is 0: give 1 or more, or use --method Local"),
        ({"active": 0.0}, "--method.topology.active is 0.0: give a probability above 0, at most 1"),
        ({"active": 1.01}, "--method.topology.active is 1.01"),
        ({"active": float("nan")}, "--method.topology.active is nan"),
        ({"replace": True, "directed": False}, "replace true needs --method.topology.directed true"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RandomGraph(**options)


def test_options_are_kept_under_their_names(tmp_path: Path) -> None:
    random = RandomGraph(degree=4, directed=True, replace=True, active=0.5, seed=3)
    assert (random.degree, random.directed, random.replace, random.active, random.seed) == (4, True, True, 0.5, 3)
    fixed = FixedGraph(str(tmp_path / "graph.txt"), active=0.5, seed=3)
    assert (fixed.graph, fixed.active, fixed.seed) == (str(tmp_path / "graph.txt"), 0.5, 3)


def read(graph: Any, clients: int) -> list[tuple[int, ...]]:
    topology = FixedGraph(graph)
    topology.check(clients)
    return topology.sources(1, clients, STREAMS)


def test_an_edge_list_reads_both_ways_without_its_comments_and_loops(tmp_path: Path) -> None:
    file = tmp_path / "edges.txt"
    file.write_text("# four clients\n0 1\n1 2 # a comment\n2 2\n3 0 {'weight': 2}\n1 0\n")
    assert read(file, 4) == read(str(file), 4) == [(1, 3), (0, 2), (1,), (0,)]


@quick
@given(st.integers(2, 12), seeds, st.booleans(), st.sampled_from(["gml", "graphml", "adjlist", "edgelist", "python"]))
def test_every_format_brings_back_the_graph(
    tmp_path_factory: pytest.TempPathFactory, clients: int, seed: int, directed: bool, kind: str
) -> None:
    graph = networkx.gnp_random_graph(
        clients, 0.4, seed=seed, directed=directed and kind not in ("adjlist", "edgelist")
    )
    assume(graph.number_of_edges() > 0)
    expected = [
        tuple(j for j in range(clients) if graph.has_edge(j, k))  # u -> v: v reads from u
        for k in range(clients)
    ]
    if kind == "python":
        assert read(graph, clients) == expected
        return
    file = tmp_path_factory.mktemp("graph") / f"graph.{kind}"
    getattr(networkx, f"write_{kind}")(graph, file)
    assert read(file, clients) == expected


def test_an_arrow_points_to_its_reader() -> None:
    assert read(networkx.DiGraph([(0, 1), (2, 1)]), 3) == [(), (0, 2), ()]


def test_a_lonely_client_is_allowed_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    topology = FixedGraph(networkx.Graph([(0, 1), (1, 3)]))
    with caplog.at_level(logging.WARNING, "flgen"):
        topology.check(5)
        for t in range(1, 4):
            assert topology.sources(t, 5, STREAMS) == [(1,), (0, 3), (), (1,), ()]
    (record,) = caplog.records
    assert record.name == "flgen"
    text = (
        "2 of 5 clients read from nobody in --method.topology.graph Graph with 3 nodes and 2 edges, the first is client"
    )
    assert record.getMessage() == f"{text} 2"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("far.txt", "0 1\n1 5\n", "has a node 5, but clients are numbered 0 to 4"),
        ("minus.txt", "0 1\n1 -1\n", "has a node -1, but clients are numbered 0 to 4"),
        ("names.txt", "0 1\n1 bob\n", "has a node 'bob': nodes are the clients' numbers, from 0"),
        ("fractions.txt", "0 1\n1 2.0\n", r"has a node '2\.0': nodes are the clients' numbers"),
        ("zeros.txt", "0 1\n1 02\n", "has a node '02': nodes are the clients' numbers"),
        ("empty.txt", "# nothing\n", "has no edges between clients"),
        (
            "commas.txt",
            "0 1\n1,2\n",
            r"cannot be read \(line 2 is '1,2'\): give a file with one edge `u v`",
        ),
        ("words.txt", "# u v\n0 1 2 # and more\n", r"cannot be read \(line 2 is '0 1 2 # and more'\)"),
        ("loops.txt", "0 0\n3 3\n", "has no edges between clients"),
        ("broken.gml", "graph [ node [", r"broken\.gml cannot be read \("),
        ("broken.graphml", "<graph", r"broken\.graphml cannot be read \("),
    ],
)
def test_a_bad_graph_file_is_one_clear_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as refusal:
        FixedGraph(tmp_path / name).check(5)
    assert str(refusal.value).startswith(f"--method.topology.graph {tmp_path / name} ")
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_missing_or_no_text_is_one_clear_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    line = f"--method.topology.graph {missing} cannot be read (No such file or directory): give a file with one edge"
    with pytest.raises(UsageError) as refusal:
        FixedGraph(missing).check(5)
    assert str(refusal.value) == f"{line} `u v` per line"
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        FixedGraph(tmp_path).check(5)
    (tmp_path / "binary.txt").write_bytes(b"\x80\x04\xff\xfe0 1\n")
    with pytest.raises(UsageError, match=r"binary\.txt cannot be read \("):
        FixedGraph(tmp_path / "binary.txt").check(5)


def test_a_refused_graph_is_refused_again() -> None:
    topology = FixedGraph(networkx.Graph([(0, 1), (1, "bob")]))
    for _ in range(2):
        with pytest.raises(UsageError, match="has a node 'bob'"):
            topology.check(5)


@pytest.mark.parametrize("graph", [3, None, {"class_path": "networkx.Graph"}])
def test_what_is_no_graph_is_refused(graph: Any) -> None:
    with pytest.raises(UsageError, match="give a file, or from Python a networkx graph"):
        FixedGraph(graph).check(5)
