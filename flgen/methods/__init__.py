"""Federated algorithms, one file each."""

from flgen.methods.base import Method, PeerMethod, ServerMethod
from flgen.methods.dispfl import DisPFL
from flgen.methods.dispfl_variants import My1, My2
from flgen.methods.ditto import Ditto
from flgen.methods.dp_fedavg_gan import DPFedAvgGAN
from flgen.methods.dpsgd import DPSGD
from flgen.methods.dsfl import DSFL
from flgen.methods.dynafed import DynaFed
from flgen.methods.fedavg import FedAvg
from flgen.methods.fedavg_generator import FedAvgGenerator
from flgen.methods.feddf import FedDF
from flgen.methods.feddistill import FedDistill
from flgen.methods.fedet import FedET
from flgen.methods.fedfomo import FedFOMO
from flgen.methods.fedgen import FedGen
from flgen.methods.fedgen_heads import FedGenHeads
from flgen.methods.fedgh import FedGH
from flgen.methods.fedkd import FedKD
from flgen.methods.fedktl import FedKTL
from flgen.methods.fedopt import FedOpt
from flgen.methods.fedproto import FedProto
from flgen.methods.fedprox import FedProx
from flgen.methods.fedtgp import FedTGP
from flgen.methods.fml import FML
from flgen.methods.gswgan import GSWGAN
from flgen.methods.isolated import Isolated
from flgen.methods.lgfedavg import LGFedAvg
from flgen.methods.local import Local
from flgen.methods.mdgan import MDGAN
from flgen.methods.prism import Prism
from flgen.methods.prism_generator import PrismGenerator
from flgen.methods.prism_mechanisms import CentralGaussian, ReferenceBug, StatisticsGaussian, ThetaGaussian
from flgen.methods.scaffold import Scaffold
from flgen.methods.subfedavg import SubFedAvg
from flgen.methods.uagan import UAGAN

__all__ = [
    "DPSGD",
    "DSFL",
    "FML",
    "GSWGAN",
    "MDGAN",
    "UAGAN",
    "CentralGaussian",
    "DPFedAvgGAN",
    "DisPFL",
    "Ditto",
    "DynaFed",
    "FedAvg",
    "FedAvgGenerator",
    "FedDF",
    "FedDistill",
    "FedET",
    "FedFOMO",
    "FedGH",
    "FedGen",
    "FedGenHeads",
    "FedKD",
    "FedKTL",
    "FedOpt",
    "FedProto",
    "FedProx",
    "FedTGP",
    "Isolated",
    "LGFedAvg",
    "Local",
    "Method",
    "My1",
    "My2",
    "PeerMethod",
    "Prism",
    "PrismGenerator",
    "ReferenceBug",
    "Scaffold",
    "ServerMethod",
    "StatisticsGaussian",
    "SubFedAvg",
    "ThetaGaussian",
]
