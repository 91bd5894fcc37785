"""A random graph in which every node has the same number of neighbours."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import networkx
else:
    networkx = deferred_module("networkx")


def random_regular_graph(degree: int, nodes: int, seed: int) -> networkx.Graph:
    """Return an undirected graph on 0 .. nodes - 1, uniform for small degrees; it need not be connected.

    Args:
        degree: Neighbours of each node, below `nodes`; degree times nodes is even.
        nodes: Number of nodes.
        seed: Of the draw.
    """
    # networkx matches up edge ends at random and starts again when it is stuck, which in a graph with nearly all
    # edges is nearly always: there the edges to leave out are drawn.
    dense = 2 * degree >= nodes
    graph = networkx.random_regular_graph(nodes - 1 - degree if dense else degree, nodes, seed=seed)
    return networkx.complement(graph) if dense else graph
