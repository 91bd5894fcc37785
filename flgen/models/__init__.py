"""Networks and losses that the configuration can name; nothing here imports torch before it is used."""

from flgen.models.audio_conv_rnn import AudioConvRNN
from flgen.models.classifiers import SmallCNN
from flgen.models.convnet import ConvNet
from flgen.models.generators import ResnetGenerator
from flgen.models.image_gan import DenseGenerator, ImageGAN
from flgen.models.losses import KernelMMD, Loss
from flgen.models.model_groups import HtFE1, HtFE2, HtFE3, HtFE4, HtFE8, HtFE8HtC4, HtFE9, HtM10
from flgen.models.moment_losses import ClassifierMoments, VggMoments
from flgen.models.pooled_classifier import PooledClassifier
from flgen.models.resnet import ResNet18
from flgen.models.resnet20 import ResNet20
from flgen.models.small_classifiers import SmallMLP, SmallResNet
from flgen.models.text_classifiers import EmbeddingBagClassifier, TransformerClassifier
from flgen.models.torchvision_classifiers import VGG19, TorchvisionResNet
from flgen.models.vgg11 import VGG11

__all__ = [
    "VGG11",
    "VGG19",
    "AudioConvRNN",
    "ClassifierMoments",
    "ConvNet",
    "DenseGenerator",
    "EmbeddingBagClassifier",
    "HtFE1",
    "HtFE2",
    "HtFE3",
    "HtFE4",
    "HtFE8",
    "HtFE8HtC4",
    "HtFE9",
    "HtM10",
    "ImageGAN",
    "KernelMMD",
    "Loss",
    "PooledClassifier",
    "ResNet18",
    "ResNet20",
    "ResnetGenerator",
    "SmallCNN",
    "SmallMLP",
    "SmallResNet",
    "TorchvisionResNet",
    "TransformerClassifier",
    "VggMoments",
]
