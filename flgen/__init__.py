"""Federated training of generative and personalised models, on PyTorch Lightning and Fabric."""

from flgen.callbacks import Callback, Evaluation, TensorBoardLogger, WandbLogger
from flgen.data import (
    CIFAR10,
    IID,
    MNIST,
    AsStored,
    ByAttribute,
    CelebA,
    ClientShards,
    Digits,
    Dirichlet,
    FashionMNIST,
    ImageFolder,
    Pathological,
    Shards,
)
from flgen.methods import FedAvg, Prism, ServerMethod
from flgen.models import KernelMMD, ResnetGenerator, SmallCNN, VggMoments
from flgen.topology import Star
from flgen.trainer import FederatedTrainer

__version__ = "0.1.0"

__all__ = [
    "CIFAR10",
    "IID",
    "MNIST",
    "AsStored",
    "ByAttribute",
    "Callback",
    "CelebA",
    "ClientShards",
    "Digits",
    "Dirichlet",
    "Evaluation",
    "FashionMNIST",
    "FedAvg",
    "FederatedTrainer",
    "ImageFolder",
    "KernelMMD",
    "Pathological",
    "Prism",
    "ResnetGenerator",
    "ServerMethod",
    "Shards",
    "SmallCNN",
    "Star",
    "TensorBoardLogger",
    "VggMoments",
    "WandbLogger",
]
