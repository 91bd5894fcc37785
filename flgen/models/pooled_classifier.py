"""The networks of FedKTL's mixed federations as classifiers with features of one width (fedktl.md, section 3)."""

from __future__ import annotations

from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.models.classifiers import Classifier, check_counts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

Architecture = Literal[
    "cnn4",
    "googlenet",
    "mobilenet_v2",
    "resnet4",
    "resnet6",
    "resnet8",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vit_b_16",
    "vit_b_32",
]

HeadActivation = Literal["relu", "tanh"]

_SMALLEST = {"cnn4": 16, "googlenet": 15}  # pixels; of smaller images a pooling leaves nothing
_PATCHES = {"vit_b_16": 16, "vit_b_32": 32}


class PooledClassifier(Classifier):
    """A published network whose last layer is replaced by a pooling to `feature_width`, and a head; trained by SGD.

    The pooling averages over bins of the features and learns nothing (`WidthPooling`), so that classifiers of different
    architectures have features z of one width. ResNets have the stem of ImageNet, also for small images: a 7x7
    convolution of stride 2 and a pooling; resnet4, 6, 8 and 10 have one block in each of the first 1, 2, 3 and 4
    stages. GoogLeNet has no auxiliary heads. Dropout of 0.2 before the pooling makes the features of GoogLeNet and
    MobileNetV2 random in training. BatchNorm has running statistics. Initial weights are torchvision's, those of cnn4
    and of every head PyTorch's, hence those of `seed_everything`.

    Args:
        architecture: The network; cnn4 is two 5x5 convolutions and two linear layers, the head one of them.
        image_size: Height and width of the images in pixels: at least 16 for cnn4 and 15 for googlenet, a multiple of
            the patch for the ViTs. Null takes the data set's (from Python: 32).
        channels: Channels of the images, 1 or 3; grey ones are shown to the network three times. Null takes the data
            set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        feature_width: Elements of z.
        head_width: Elements between the two linear layers of the head; null is a head of one linear layer.
        head_activation: What stands between the two layers of the head. Nothing comes after the last one.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is out of range, or a number is negative.

    Source: fedktl.md, section 3; its section 8, item 12, for what ends a head.
    """

    def __init__(
        self,
        architecture: Architecture = "resnet18",
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        feature_width: int = 512,
        head_width: int | None = None,
        head_activation: HeadActivation = "relu",
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        image_size = 32 if image_size is None else image_size
        channels = 3 if channels is None else channels
        classes = 10 if classes is None else classes
        check_counts(image_size=image_size, classes=classes, feature_width=feature_width)
        if head_width is not None:
            check_counts(head_width=head_width)
        if channels not in (1, 3):
            raise UsageError(f"--model.channels {channels}: {architecture} takes images of 1 or 3 channels")
        _check_image(architecture, image_size)
        self.architecture, self.image_size, self.channels, self.classes = architecture, image_size, channels, classes
        self.feature_width, self.head_width, self.head_activation = feature_width, head_width, head_activation

        from flgen.models.width_pooling import WidthPooling

        self.pooling = WidthPooling(feature_width)
        self.network, self.linear = self._draw()

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, feature_width)."""
        z: Tensor = self.pooling(self.network(inputs.expand(-1, 3, -1, -1)))
        return z

    def reset_parameters(self) -> None:
        """Draw initial weights and statistics anew in place, from PyTorch's global generator of the CPU."""
        network, linear = self._draw()
        self.network.load_state_dict(network.state_dict())
        self.linear.load_state_dict(linear.state_dict())

    def _draw(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Return the network without its last layer, and the head."""
        from flgen.models import backbones

        return backbones.build(self.architecture, self.image_size), self._new_head()

    def _new_head(self) -> torch.nn.Module:
        nn = torch.nn
        if self.head_width is None:
            return nn.Linear(self.feature_width, self.classes)
        activation = nn.ReLU() if self.head_activation == "relu" else nn.Tanh()
        return nn.Sequential(
            nn.Linear(self.feature_width, self.head_width), activation, nn.Linear(self.head_width, self.classes)
        )


def _check_image(architecture: Architecture, image_size: int) -> None:
    smallest, patch = _SMALLEST.get(architecture, 1), _PATCHES.get(architecture, 1)
    if image_size < smallest:
        raise UsageError(
            f"--model.image_size {image_size}: {architecture} needs images of at least {smallest}x{smallest} pixels; "
            "use larger images, or a model without it"
        )
    if image_size % patch:
        raise UsageError(
            f"--model.image_size {image_size}: {architecture} cuts images into patches of {patch}x{patch} pixels; use "
            f"images of a multiple of {patch}, or a model without it"
        )
