"""VGG-11 for small images, with group normalisation (DisPFL, section 8.3)."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.models.classifiers import Classifier, check_groups, check_sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

_MULTIPLES = (1, 2, 4, 4, 8, 8, 8, 8)  # of width: configuration A of Simonyan and Zisserman, ICLR 2015
_POOLED_AFTER = (0, 1, 3, 5, 7)


class VGG11(Classifier):
    """VGG-11: eight 3x3 convolutions with GroupNorm and ReLU, five 2x2 poolings, one linear layer; trained by SGD.

    Initial weights of convolutions are Kaiming-normal by their outputs, N(0, 2 / (9 outputs)), those of the linear
    layer N(0, 0.01^2), biases are zero; all follow `seed_everything`. The published network sees 32x32 pixels, of
    which the last pooling leaves one; of larger images the average over what it leaves is taken.

    Args:
        image_size: Height and width of the images in pixels, at least 32. Null takes the data set's (from Python: 32).
        channels: Channels of the images. Null takes the data set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        width: Channels of the first convolution; the last four have eight times as many.
        groups: Groups of every GroupNorm, a divisor of width.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is too small, groups do not divide width, or a number is negative.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        width: int = 64,
        groups: int = 32,
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        image_size = 32 if image_size is None else image_size
        channels = 3 if channels is None else channels
        classes = 10 if classes is None else classes
        check_sizes("VGG11", 5, image_size, channels=channels, classes=classes, width=width, groups=groups)
        check_groups(groups, width)
        self.image_size, self.channels, self.classes = image_size, channels, classes
        self.width, self.groups = width, groups

        nn = torch.nn
        layers: list[torch.nn.Module] = []
        inputs = channels
        for layer, multiple in enumerate(_MULTIPLES):
            outputs = multiple * width
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.ReLU(inplace=True)]
            if layer in _POOLED_AFTER:
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, classes)
        self.reset_parameters()

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, 8 * width)."""
        return torch.nn.functional.adaptive_avg_pool2d(self.layers(inputs), 1).flatten(1)

    def reset_parameters(self) -> None:
        """Draw initial weights in place, from PyTorch's global generator as any layer does."""
        nn = torch.nn
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
            elif isinstance(layer, nn.GroupNorm):
                layer.reset_parameters()
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
