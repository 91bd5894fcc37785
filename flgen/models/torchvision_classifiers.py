"""torchvision's ResNets and VGG-19 as classifiers, from random weights or a file of theirs (GPT-FL, section 5.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.models.classifiers import Classifier, check_counts, check_sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")


class TorchvisionClassifier(Classifier):
    """A network of torchvision's, cut before its last layer, `linear`, which is made for the classes at hand.

    A subclass defines `published` and `_build`, and calls `reset_parameters` at the end of its constructor.

    Args:
        channels: Channels of the images, 1 or 3; grey ones are shown to the network three times.
        classes: Number of classes.
        pretrained: State dict of the network as torchvision publishes it; null draws random weights.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Attributes:
        init: Where the initial weights came from: "random", or the path of the file.

    Raises:
        UsageError: A size is out of range, or a number is negative.
        FlgenError: The file is missing, damaged or of another network.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        pretrained: str | None,
        learning_rate: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        check_counts(classes=classes)
        if channels not in (1, 3):
            raise UsageError(f"--model.channels {channels}: torchvision's networks take images of 1 or 3 channels")
        self.channels, self.classes, self.pretrained = channels, classes, pretrained
        self.init = "random" if pretrained is None else pretrained

    @property
    def published(self) -> str:
        """Name of the network in `torchvision.models`."""
        raise TypeError(f"{type(self).__name__} is not complete: it needs a property published")

    def _build(self) -> tuple[torch.nn.Module, torch.nn.Linear, str]:
        """Return the network without its last layer, freshly drawn, that layer, and its name in the state dict."""
        raise TypeError(f"{type(self).__name__} is not complete: it needs a method _build")

    def reset_parameters(self) -> None:
        """Take initial weights: torchvision's own draw, or the file's for all but the last layer, which is drawn.

        Raises:
            FlgenError: The file is missing, damaged or of another network.
        """
        network, linear, last = self._build()
        if self.pretrained is not None:
            path = Path(self.pretrained).expanduser()
            state = read_weights(path, self.published)
            state = {name: value for name, value in state.items() if not name.startswith(f"{last}.")}
            try:
                network.load_state_dict(state)
            except RuntimeError as error:
                raise FlgenError(
                    f"{path} holds the weights of another network than torchvision's {self.published}: "
                    "correct --model.pretrained"
                ) from error
        if "network" not in self._modules:
            self.network, self.linear = network, linear
            return
        # Drawn anew in place: whoever holds the parameters goes on holding them.
        self.network.load_state_dict(network.state_dict())
        self.linear.load_state_dict(linear.state_dict())

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, Z), Z the width of the last layer's input."""
        z: Tensor = self.network(inputs.expand(-1, 3, -1, -1))
        return z


class TorchvisionResNet(TorchvisionClassifier):
    """ResNet-18 or ResNet-50 of torchvision, with the stem of ImageNet also for small images; trained by SGD.

    Stem: a 7x7 convolution of stride 2 and a pooling. BatchNorm with running statistics, which methods average as they
    average weights. `ResNet18` is another network: GroupNorm and the stem of CIFAR.

    Args:
        depth: 18 or 50 layers.
        channels: Channels of the images, 1 or 3. Null takes the data set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        pretrained: File of torchvision's ImageNet weights of this network (`resnet18-*.pth`, `resnet50-*.pth`); its
            last layer is not used. Null draws random weights.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Attributes:
        init: Where the initial weights came from: "random", or the path of the file.

    Raises:
        UsageError: A size is out of range, or a number is negative.
        FlgenError: The file is missing, damaged or of another network.

    Source: He et al., CVPR 2016; GPT-FL, section 5.3.
    """

    def __init__(
        self,
        depth: Literal[18, 50] = 18,
        channels: int | None = None,
        classes: int | None = None,
        pretrained: str | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        channels = 3 if channels is None else channels
        classes = 10 if classes is None else classes
        super().__init__(channels, classes, pretrained, learning_rate, weight_decay, momentum)
        if depth not in (18, 50):
            raise UsageError(f"--model.depth {depth}: give 18 or 50")
        self.depth = depth
        self.reset_parameters()

    @property
    def published(self) -> str:
        """Name of the network in `torchvision.models`."""
        return f"resnet{self.depth}"

    def _build(self) -> tuple[torch.nn.Module, torch.nn.Linear, str]:
        import torchvision.models

        from flgen.models.batch_norm import BatchNorm

        build = getattr(torchvision.models, self.published)
        network = build(weights=None, num_classes=self.classes, norm_layer=BatchNorm)
        linear, network.fc = network.fc, torch.nn.Identity()
        return network, linear, "fc"


class VGG19(TorchvisionClassifier):
    """VGG-19 of torchvision, without batch normalisation, also for small images; trained by SGD.

    An image of 32x32 pixels leaves maps of one pixel, which the network's adaptive pooling repeats to 7x7. Dropout of
    1/2 in training, before each of the last two layers.

    Args:
        image_size: Height and width of the images in pixels, at least 32. Null takes the data set's (from Python: 32).
        channels: Channels of the images, 1 or 3. Null takes the data set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        pretrained: File of torchvision's ImageNet weights of this network (`vgg19-*.pth`); its last layer is not used.
            Null draws random weights.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Attributes:
        init: Where the initial weights came from: "random", or the path of the file.

    Raises:
        UsageError: A size is out of range, or a number is negative.
        FlgenError: The file is missing, damaged or of another network.

    Source: Simonyan and Zisserman, ICLR 2015, configuration E; GPT-FL, section 5.3.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        pretrained: str | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        image_size = 32 if image_size is None else image_size
        channels = 3 if channels is None else channels
        classes = 10 if classes is None else classes
        check_sizes("VGG19", 5, image_size)
        super().__init__(channels, classes, pretrained, learning_rate, weight_decay, momentum)
        self.image_size = image_size
        self.reset_parameters()

    @property
    def published(self) -> str:
        """Name of the network in `torchvision.models`."""
        return "vgg19"

    def _build(self) -> tuple[torch.nn.Module, torch.nn.Linear, str]:
        import torchvision.models

        network = torchvision.models.vgg19(weights=None, num_classes=self.classes)
        linear = network.classifier.pop(6)
        return network, linear, "classifier.6"


def read_weights(path: Path, published: str) -> dict[str, Tensor]:
    """Return a state dict that torchvision publishes, from a file; nothing but tensors is unpickled.

    Args:
        path: The file.
        published: Name of the network in `torchvision.models`, for messages.

    Raises:
        FlgenError: The file is missing or damaged.
    """
    remedy = f"give --model.pretrained the file of torchvision's {published} weights, or null for random ones"
    if not path.is_file():
        raise FlgenError(f"--model.pretrained {path}: there is no such file; {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise FlgenError(f"--model.pretrained {path} is not a readable file of weights; {remedy}") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise FlgenError(f"--model.pretrained {path} holds no state dict; {remedy}")
    return state
