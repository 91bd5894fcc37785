"""Data sets, partitioners, client batches, webdataset shards.

The names below are the ones that a configuration can name; importing them does not import torch.
"""

from flgen.data.celeba import CelebA
from flgen.data.cifar import CIFAR10, CIFAR100
from flgen.data.client_dirichlet import ClientDirichlet
from flgen.data.client_shards import ClientShards
from flgen.data.digits import Digits
from flgen.data.image_data import ImageData
from flgen.data.image_folder import ImageFolder
from flgen.data.mnist import MNIST, FashionMNIST
from flgen.data.partition import IID, AsStored, ByAttribute, Dirichlet, Partitioner, Pathological, Shards
from flgen.data.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IID",
    "MNIST",
    "AsStored",
    "ByAttribute",
    "CelebA",
    "ClientDirichlet",
    "ClientShards",
    "Digits",
    "Dirichlet",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "Partitioner",
    "Pathological",
    "Shards",
    "TinyImageNet",
]
