"""Federated algorithms, one file each."""

from flgen.methods.base import Method, PeerMethod, ServerMethod
from flgen.methods.dispfl import DisPFL
from flgen.methods.dispfl_variants import My1, My2
from flgen.methods.ditto import Ditto
from flgen.methods.dpsgd import DPSGD
from flgen.methods.dsfl import DSFL
from flgen.methods.dynafed import DynaFed
from flgen.methods.fedavg import FedAvg
from flgen.methods.feddf import FedDF
from flgen.methods.fedet import FedET
from flgen.methods.fedfomo import FedFOMO
from flgen.methods.fedgen import FedGen
from flgen.methods.fedopt import FedOpt
from flgen.methods.fedprox import FedProx
from flgen.methods.isolated import Isolated
from flgen.methods.local import Local
from flgen.methods.prism import Prism
from flgen.methods.scaffold import Scaffold
from flgen.methods.subfedavg import SubFedAvg

__all__ = [
    "DPSGD",
    "DSFL",
    "DisPFL",
    "Ditto",
    "DynaFed",
    "FedAvg",
    "FedDF",
    "FedET",
    "FedFOMO",
    "FedGen",
    "FedOpt",
    "FedProx",
    "Isolated",
    "Local",
    "Method",
    "My1",
    "My2",
    "PeerMethod",
    "Prism",
    "Scaffold",
    "ServerMethod",
    "SubFedAvg",
]
