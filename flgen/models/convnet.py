"""The ConvNet of DynaFed, with instance normalisation instead of running statistics (GPT-FL, section 5.3)."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.models.classifiers import Classifier, check_sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

_BLOCKS = 3


class ConvNet(Classifier):
    """Three times 3x3 convolution, GroupNorm with one group per channel, ReLU and 2x2 averaging, then one linear layer.

    It has no buffers, so that averages of clients' models are averages of weights alone. Trained by SGD. Initial
    weights are PyTorch's own, hence those of `seed_everything`.

    Args:
        image_size: Height and width of the images in pixels, at least 8. Null takes the data set's (from Python: 32).
        channels: Channels of the images. Null takes the data set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        width: Channels of every convolution.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is too small, or a number is negative.

    Source: GPT-FL, section 5.3; published with 320,010 parameters for ten classes at 32x32.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        width: int = 128,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        image_size = 32 if image_size is None else image_size
        channels = 3 if channels is None else channels
        classes = 10 if classes is None else classes
        check_sizes("ConvNet", _BLOCKS, image_size, channels=channels, classes=classes, width=width)
        self.image_size, self.channels, self.classes, self.width = image_size, channels, classes, width
        nn = torch.nn
        layers: list[torch.nn.Module] = []
        inputs = channels
        for _ in range(_BLOCKS):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
            inputs = width
        self.blocks = nn.Sequential(*layers, nn.Flatten())
        self.linear = nn.Linear(width * (image_size // 2**_BLOCKS) ** 2, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, width * (H // 8) * (W // 8))."""
        z: Tensor = self.blocks(inputs)
        return z
