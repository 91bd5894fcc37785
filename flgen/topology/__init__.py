"""Who may send to whom, and the process group that carries it."""

from flgen.topology.base import Topology
from flgen.topology.peers import FixedGraph, FullyConnected, NoEdges, PeerTopology, RandomGraph, Ring
from flgen.topology.star import Star

__all__ = ["FixedGraph", "FullyConnected", "NoEdges", "PeerTopology", "RandomGraph", "Ring", "Star", "Topology"]
