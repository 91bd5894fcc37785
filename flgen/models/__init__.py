"""Networks and losses that the configuration can name; nothing here imports torch before it is used."""

from flgen.models.classifiers import SmallCNN
from flgen.models.generators import ResnetGenerator
from flgen.models.losses import KernelMMD, Loss, VggMoments

__all__ = ["KernelMMD", "Loss", "ResnetGenerator", "SmallCNN", "VggMoments"]
