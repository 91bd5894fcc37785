"""Federated algorithms, one file each."""

from flgen.methods.base import Method, PeerMethod, ServerMethod
from flgen.methods.dispfl import DisPFL
from flgen.methods.dispfl_variants import My1, My2
from flgen.methods.ditto import Ditto
from flgen.methods.dpsgd import DPSGD
from flgen.methods.fedavg import FedAvg
from flgen.methods.fedfomo import FedFOMO
from flgen.methods.local import Local
from flgen.methods.prism import Prism
from flgen.methods.subfedavg import SubFedAvg

__all__ = [
    "DPSGD",
    "DisPFL",
    "Ditto",
    "FedAvg",
    "FedFOMO",
    "Local",
    "Method",
    "My1",
    "My2",
    "PeerMethod",
    "Prism",
    "ServerMethod",
    "SubFedAvg",
]
