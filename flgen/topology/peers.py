"""Topologies without a server: in every round each client reads from some others.

A graph is a list of sources: entry k names, in ascending order, whom node k reads from, itself left out. Nodes are the
clients' keys, so that renumbering clients renumbers their neighbours.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.federation.regular_graph import random_regular_graph
from flgen.federation.streams import RandomStreams
from flgen.topology.base import Topology

if TYPE_CHECKING:
    import networkx
else:
    networkx = deferred_module("networkx")

log = logging.getLogger("flgen")

Sources = list[tuple[int, ...]]


class PeerTopology(Topology):
    """Whom each client reads from, round by round.

    Args:
        active: Probability that a client is active in a round; an inactive one neither sends nor receives.
        seed: Seed of the graph; null takes the run's. Methods with the same seed see the same graphs.

    Raises:
        UsageError: `active` is out of its range.
    """

    def __init__(self, active: float = 1.0, seed: int | None = None) -> None:
        if not 0 < active <= 1:
            raise UsageError(f"--method.topology.active is {active}: give a probability above 0, at most 1")
        self.active = active
        self.seed = seed

    def check(self, clients: int) -> None:
        """Refuse a federation of one client, which has nobody to talk to."""
        if clients < 2:
            raise UsageError(
                f"{type(self).__name__} connects clients, and --partition.clients is {clients}: give 2 or more, or use "
                "--method Local"
            )

    def sources(self, t: int, clients: int, streams: RandomStreams) -> Sources:
        """Return whom each node reads from in round t, inactive ones left out on both ends.

        Args:
            t: The round, from 1.
            clients: Number of nodes K.
            streams: The run's random streams.
        """
        streams = streams if self.seed is None else RandomStreams(self.seed)
        graph = self._draw(t, clients, streams)
        if self.active == 1.0:
            return graph
        present = [streams.numpy("active", round=t, client=k).random() < self.active for k in range(clients)]
        return [tuple(j for j in graph[k] if present[j]) if present[k] else () for k in range(clients)]

    def _draw(self, t: int, clients: int, streams: RandomStreams) -> Sources:
        raise TypeError(f"{type(self).__name__} is not a complete topology: it needs a method _draw")


class NoEdges(PeerTopology):
    """Nobody reads from anybody."""

    def __init__(self) -> None:
        super().__init__()

    def check(self, clients: int) -> None:
        """Any number of clients can be alone."""

    def _draw(self, t: int, clients: int, streams: RandomStreams) -> Sources:
        return [()] * clients


class Ring(PeerTopology):
    """Client k reads from k - 1 and k + 1, round the circle.

    Args:
        active: Probability that a client is active in a round; an inactive one neither sends nor receives.
        seed: Seed of the graph; null takes the run's.
    """

    def check(self, clients: int) -> None:
        """Refuse fewer than three clients."""
        super().check(clients)
        if clients < 3:
            raise UsageError(f"a Ring needs 3 clients, --partition.clients is {clients}: use FullyConnected")

    def _draw(self, t: int, clients: int, streams: RandomStreams) -> Sources:
        return [tuple(sorted(((k - 1) % clients, (k + 1) % clients))) for k in range(clients)]


class FullyConnected(PeerTopology):
    """Every client reads from every other.

    Args:
        active: Probability that a client is active in a round; an inactive one neither sends nor receives.
        seed: Seed of the graph; null takes the run's.
    """

    def _draw(self, t: int, clients: int, streams: RandomStreams) -> Sources:
        return [tuple(j for j in range(clients) if j != k) for k in range(clients)]


class RandomGraph(PeerTopology):
    """A new random graph in every round.

    Args:
        degree: Number of clients that each client reads from.
        directed: Whether reading is one-way, each client drawing for itself (in-degree exact, out-degree random); or
            the graph is symmetric and regular.
        replace: Whether a client draws with replacement: one drawn twice counts once, so it may read from fewer.
        active: Probability that a client is active in a round; an inactive one neither sends nor receives, and who
            had drawn it does not draw again.
        seed: Seed of the graph; null takes the run's.

    Raises:
        UsageError: An option is out of its range, or two of them clash.
    """

    def __init__(
        self,
        degree: int = 10,
        directed: bool = True,
        replace: bool = False,
        active: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(active, seed)
        if degree < 1:
            raise UsageError(f"--method.topology.degree is {degree}: give 1 or more, or use --method Local")
        if replace and not directed:
            raise UsageError("--method.topology.replace true needs --method.topology.directed true")
        self.degree = degree
        self.directed = directed
        self.replace = replace

    def check(self, clients: int) -> None:
        """Refuse a degree that so few clients cannot have."""
        super().check(clients)
        if self.degree >= clients:
            raise UsageError(
                f"--method.topology.degree is {self.degree}, but {clients} clients have at most {clients - 1} others: "
                "lower it, or use FullyConnected"
            )
        if not self.directed and self.degree * clients % 2:
            raise UsageError(
                f"no symmetric graph gives {clients} clients {self.degree} neighbours each: make "
                "--method.topology.degree or --partition.clients even"
            )

    def _draw(self, t: int, clients: int, streams: RandomStreams) -> Sources:
        if not self.directed:
            return self._draw_symmetric(clients, streams.seed_for("graph", round=t))
        sources = []
        for k in range(clients):
            draws = streams.numpy("graph", round=t, client=k).choice(clients - 1, self.degree, replace=self.replace)
            sources.append(tuple(sorted({int(j) + (int(j) >= k) for j in draws})))
        return sources

    def _draw_symmetric(self, clients: int, seed: int) -> Sources:
        graph = random_regular_graph(self.degree, clients, seed)
        return [tuple(sorted(graph[k])) for k in range(clients)]


class FixedGraph(PeerTopology):
    """The same graph in every round, from a file or from networkx.

    Args:
        graph: A file with one edge `u v` per line, along which both read, or .gml, .graphml or .adjlist; from Python
            also a networkx graph. Nodes are the numbers of the clients, from 0. In a directed graph an edge u -> v
            means that v reads from u.
        active: Probability that a client is active in a round; an inactive one neither sends nor receives.
        seed: Seed of `active`; null takes the run's.

    Raises:
        UsageError: The file cannot be read, or names other nodes than clients.
    """

    def __init__(self, graph: Any, active: float = 1.0, seed: int | None = None) -> None:
        super().__init__(active, seed)
        self.graph = graph
        self._read: Any = None

    def check(self, clients: int) -> None:
        """Read the graph, and refuse one that is not about these clients."""
        graph = self._loaded()
        strange = [node for node in graph.nodes if not 0 <= node < clients]
        if strange:
            raise UsageError(
                f"--method.topology.graph {self.graph} has a node {min(strange)}, but clients are numbered 0 to "
                f"{clients - 1} (--partition.clients)"
            )
        alone = [k for k in range(clients) if not self._sources_of(graph, k)]
        if len(alone) == clients:
            raise UsageError(
                f"--method.topology.graph {self.graph} has no edges between clients: give one edge `u v` per line, or "
                "use --method Local"
            )
        if alone:
            log.warning(
                "%d of %d clients read from nobody in --method.topology.graph %s, the first is client %d",
                len(alone),
                clients,
                self.graph,
                alone[0],
            )

    def _draw(self, t: int, clients: int, streams: RandomStreams) -> Sources:
        graph = self._loaded()
        return [self._sources_of(graph, k) for k in range(clients)]

    def _sources_of(self, graph: Any, k: int) -> tuple[int, ...]:
        if k not in graph:
            return ()
        neighbours = graph.predecessors(k) if graph.is_directed() else graph[k]
        return tuple(sorted(j for j in neighbours if j != k))

    def _loaded(self) -> Any:
        if self._read is None:
            graph = self._load() if isinstance(self.graph, (str, Path)) else self.graph
            if not isinstance(graph, networkx.Graph):
                raise UsageError(
                    f"--method.topology.graph is {graph!r}: give a file, or from Python a networkx graph (one that was "
                    "given from Python is not in config.yaml)"
                )
            self._read = networkx.relabel_nodes(graph, {node: self._client(node) for node in graph.nodes})
        return self._read

    def _client(self, node: Any) -> int:
        if not re.fullmatch(r"0|-?[1-9][0-9]*", str(node)):  # 1.0 and 01 are not taken for 1
            raise UsageError(
                f"--method.topology.graph {self.graph} has a node {node!r}: nodes are the clients' numbers, from 0"
            )
        return int(node)

    def _load(self) -> Any:
        path = Path(self.graph)
        readers = {".gml": networkx.read_gml, ".graphml": networkx.read_graphml, ".adjlist": networkx.read_adjlist}
        try:
            if path.suffix in readers:
                return readers[path.suffix](path)
            return networkx.Graph(_read_edges(path))
        except Exception as error:  # what networkx's readers raise has no common class
            text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise UsageError(
                f"--method.topology.graph {path} cannot be read ({' '.join(text.split())}): give a file with one edge "
                "`u v` per line"
            ) from error


def _read_edges(path: Path) -> list[tuple[str, str]]:
    """Return the edges of a text file, one `u v` per line; a # begins a comment, a { what networkx writes behind."""
    edges = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.partition("#")[0].partition("{")[0].split()
        if words and len(words) != 2:
            raise ValueError(f"line {number} is {line.strip()[:40]!r}")
        if words:
            edges.append((words[0], words[1]))
    return edges
