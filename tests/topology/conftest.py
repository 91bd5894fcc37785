"""Tests of topologies may work on real ranks."""

from ranks import on_ranks

__all__ = ["on_ranks"]
