"""Who may send to whom, and the process group that carries it."""

from flgen.topology.star import Star

__all__ = ["Star"]
