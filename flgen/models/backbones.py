"""The published networks of FedKTL's mixed federations, freshly drawn and cut before their last layer (section 3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torchvision.models
from torch import nn
from torchvision.models.googlenet import BasicConv2d, Inception, InceptionAux
from torchvision.models.resnet import BasicBlock, ResNet

from flgen.models.batch_norm import BatchNorm

CNN_WIDTH = 512
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_STAGES_OF = {"resnet4": 1, "resnet6": 2, "resnet8": 3, "resnet10": 4}
_GOOGLENET_EPS = 1e-3  # torchvision's
_CLASSES = 1  # of the last layer, which is cut off


def build(architecture: str, image_size: int) -> nn.Module:
    """Return a network that maps images (B, 3, image_size, image_size) to its own features (B, L).

    Initial weights are torchvision's, of the 4-layer CNN PyTorch's, from PyTorch's global generator. Every BatchNorm2d
    also takes a single value in training. GoogLeNet and MobileNetV2 keep their dropout of 0.2, which comes last.

    Args:
        architecture: One of `flgen.models.pooled_classifier.Architecture`.
        image_size: Height and width of the images in pixels; only the 4-layer CNN and the ViTs are built for it.
    """
    if architecture == "cnn4":
        return four_layer_cnn(image_size)
    if architecture in _STAGES_OF:
        return shallow_resnet(_STAGES_OF[architecture])
    published = getattr(torchvision.models, architecture)
    if architecture.startswith("resnet"):
        network = published(weights=None, num_classes=_CLASSES, norm_layer=BatchNorm)
        network.fc = nn.Identity()
    elif architecture == "googlenet":
        blocks = [ConvolutionBlock, partial(Inception, conv_block=ConvolutionBlock), InceptionAux]
        network = published(weights=None, num_classes=_CLASSES, aux_logits=False, init_weights=True, blocks=blocks)
        network.fc = nn.Identity()
    elif architecture == "mobilenet_v2":
        network = published(weights=None, num_classes=_CLASSES, norm_layer=BatchNorm)
        network.classifier.pop(1)
    else:
        network = published(weights=None, num_classes=_CLASSES, image_size=image_size)
        network.heads = nn.Identity()
    return network


def four_layer_cnn(image_size: int) -> nn.Sequential:
    """Return two 5x5 convolutions without padding, each with ReLU and 2x2 pooling, and a linear layer with ReLU.

    Args:
        image_size: Height and width of the images in pixels, at least 16.
    """
    side = ((image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(3, 32, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * side**2, CNN_WIDTH),
        nn.ReLU(inplace=True),
    )


def shallow_resnet(stages: int) -> ResNet:
    """Return a ResNet with ImageNet's stem and one block in each of its first stages: ResNet4, 6, 8 or 10.

    Args:
        stages: 1 to 4.
    """
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=_CLASSES, norm_layer=BatchNorm)
    for missing in _STAGES[stages:]:
        setattr(network, missing, nn.Identity())
    network.fc = nn.Identity()
    return network


class ConvolutionBlock(BasicConv2d):
    """GoogLeNet's convolution, normalisation and ReLU, with a normalisation that also takes a single value."""

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, **options)
        self.bn = BatchNorm(out_channels, eps=_GOOGLENET_EPS)
