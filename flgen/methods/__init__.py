"""Federated algorithms, one file each."""

from flgen.methods.base import Method, ServerMethod
from flgen.methods.fedavg import FedAvg
from flgen.methods.prism import Prism

__all__ = ["FedAvg", "Method", "Prism", "ServerMethod"]
