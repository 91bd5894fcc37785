"""How well a round's graph spreads what clients know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import networkx
import numpy as np


def graph_facts(sources: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """Return numbers of one round's graph, by metric name.

    `graph/edges`; `graph/in_degree_mean`; `graph/out_degree_max`, the readers of the most popular node;
    `graph/connected`, 1 if everybody can reach everybody; `graph/diameter`, if so; `graph/spectral_gap`, 1 minus the
    second largest magnitude among the eigenvalues of uniform averaging over a node's sources and itself: the larger,
    the faster averages spread.

    Args:
        sources: Whom each node reads from, itself left out.
    """
    count = len(sources)
    readers = Counter(j for row in sources for j in row)
    edges = sum(len(row) for row in sources)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((j, k) for k, row in enumerate(sources) for j in row)
    # Floyd and Warshall in NumPy: hundreds of nodes take a tenth of a second, a search from every node takes seconds.
    distances = networkx.floyd_warshall_numpy(graph, nodelist=range(count))
    connected = bool(np.isfinite(distances).all())
    facts = {
        "graph/edges": edges,
        "graph/in_degree_mean": edges / count,
        "graph/out_degree_max": max(readers.values(), default=0),
        "graph/connected": float(connected),
    }
    if connected:
        facts["graph/diameter"] = float(distances.max())
    averaging = np.eye(count)
    for k, row in enumerate(sources):
        averaging[k, list(row)] = 1
    averaging /= averaging.sum(axis=1, keepdims=True)
    magnitudes = np.sort(np.abs(np.linalg.eigvals(averaging)))[::-1]
    facts["graph/spectral_gap"] = max(0.0, float(1 - magnitudes[1])) if count > 1 else 1.0
    return facts
