"""Networks and losses that the configuration can name; nothing here imports torch before it is used."""

from flgen.models.classifiers import SmallCNN
from flgen.models.generators import ResnetGenerator
from flgen.models.losses import KernelMMD, Loss, VggMoments
from flgen.models.resnet import ResNet18
from flgen.models.vgg11 import VGG11

__all__ = ["VGG11", "KernelMMD", "Loss", "ResNet18", "ResnetGenerator", "SmallCNN", "VggMoments"]
