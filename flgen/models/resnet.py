"""ResNet-18 for small images, with group normalisation (DisPFL, section 8.3)."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.models.classifiers import Classifier, check_groups, check_sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")


class ResNet18(Classifier):
    """ResNet-18 with the stem of CIFAR: a 3x3 convolution of stride 1, no pooling; trained by SGD.

    GroupNorm stands in place of every BatchNorm, so that there are no buffers. Initial weights are PyTorch's own, hence
    those of `seed_everything`. The defaults are the published ones.

    Args:
        image_size: Height and width of the images in pixels, at least 8. Null takes the data set's (from Python: 32).
        channels: Channels of the images. Null takes the data set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        width: Channels of the stem and of the first of four stages; each stage has twice as many as the one before.
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
        from flgen.models.basic_block import BasicBlock

        image_size = 32 if image_size is None else image_size
        channels = 3 if channels is None else channels
        classes = 10 if classes is None else classes
        check_sizes("ResNet18", 3, image_size, channels=channels, classes=classes, width=width, groups=groups)
        check_groups(groups, width)
        self.image_size, self.channels, self.classes = image_size, channels, classes
        self.width, self.groups = width, groups

        def norm(maps: int) -> torch.nn.Module:
            return torch.nn.GroupNorm(groups, maps)

        def stage(inputs: int, outputs: int, stride: int) -> torch.nn.Sequential:
            return torch.nn.Sequential(BasicBlock(inputs, outputs, stride, norm), BasicBlock(outputs, outputs, 1, norm))

        self.conv1 = torch.nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2)
        self.layer4 = stage(4 * width, 8 * width, 2)
        self.linear = torch.nn.Linear(8 * width, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, 8 * width)."""
        F = torch.nn.functional
        maps = F.relu(self.norm1(self.conv1(inputs)), inplace=True)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
        return F.adaptive_avg_pool2d(maps, 1).flatten(1)
