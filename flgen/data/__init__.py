"""Data sets, partitioners, client batches, webdataset shards.

The names below are the ones that a configuration can name; importing them does not import torch.
"""

from flgen.data.audio_data import AudioData
from flgen.data.celeba import CelebA
from flgen.data.cifar import CIFAR10, CIFAR100
from flgen.data.client_dirichlet import ClientDirichlet
from flgen.data.client_shards import ClientShards
from flgen.data.digits import Digits
from flgen.data.esc50 import ESC50
from flgen.data.flowers102 import Flowers102
from flgen.data.image_data import ImageData
from flgen.data.image_folder import ImageFolder
from flgen.data.labelled_data import LabelledData
from flgen.data.local_split import LocalSplit
from flgen.data.meld import MELD
from flgen.data.mnist import MNIST, FashionMNIST
from flgen.data.partition import IID, AsStored, ByAttribute, Dirichlet, Partitioner, Pathological, Shards
from flgen.data.speech_commands import SpeechCommands
from flgen.data.spoken_digits import SpokenDigits
from flgen.data.text_data import TextData
from flgen.data.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "ESC50",
    "IID",
    "MELD",
    "MNIST",
    "AsStored",
    "AudioData",
    "ByAttribute",
    "CelebA",
    "ClientDirichlet",
    "ClientShards",
    "Digits",
    "Dirichlet",
    "FashionMNIST",
    "Flowers102",
    "ImageData",
    "ImageFolder",
    "LabelledData",
    "LocalSplit",
    "Partitioner",
    "Pathological",
    "Shards",
    "SpeechCommands",
    "SpokenDigits",
    "TextData",
    "TinyImageNet",
]
