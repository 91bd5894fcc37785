"""Two networks for images of a few pixels that can have features of any width, for mixed federations on a CPU."""

from __future__ import annotations

from itertools import pairwise

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.models.classifiers import Classifier, check_counts, check_sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")


class SmallMLP(Classifier):
    """Two linear layers over all pixels, each with ReLU, and a third that classifies; trained by SGD.

    Initial weights are PyTorch's own, hence those of `seed_everything`.

    Args:
        image_size: Height and width of the images in pixels. Null takes the data set's (from Python: 28).
        channels: Channels of the images. Null takes the data set's (from Python: 1).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        hidden: Elements of both hidden layers.
        feature_width: Elements of z, by a pooling of the second hidden layer without weights; null is `hidden`.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is too small, or a number is negative.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        hidden: int = 128,
        feature_width: int | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        from flgen.models.width_pooling import WidthPooling

        image_size = 28 if image_size is None else image_size
        channels = 1 if channels is None else channels
        classes = 10 if classes is None else classes
        width = hidden if feature_width is None else feature_width
        check_counts(image_size=image_size, channels=channels, classes=classes, hidden=hidden, feature_width=width)
        self.image_size, self.channels, self.classes = image_size, channels, classes
        self.hidden, self.feature_width = hidden, feature_width
        nn = torch.nn
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * image_size**2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            WidthPooling(width),
        )
        self.linear = nn.Linear(width, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, feature_width)."""
        z: Tensor = self.layers(inputs)
        return z


class SmallResNet(Classifier):
    """A 3x3 convolution, one residual block per stage, average pooling, one linear layer; trained by SGD.

    BatchNorm has running statistics, which methods average as they average weights. Initial weights are PyTorch's own,
    hence those of `seed_everything`.

    Args:
        image_size: Height and width of the images in pixels, at least 2^(stages - 1). Null takes the data set's (from
            Python: 28).
        channels: Channels of the images. Null takes the data set's (from Python: 1).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        width: Channels of the first stage; each next one has twice as many, and maps of half the side.
        stages: Number of stages.
        feature_width: Elements of z, by a pooling of the last stage's channels without weights; null is as many as
            there are channels.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is too small, or a number is negative.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        width: int = 16,
        stages: int = 2,
        feature_width: int | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        from flgen.models.basic_block import BasicBlock
        from flgen.models.batch_norm import BatchNorm
        from flgen.models.width_pooling import WidthPooling

        image_size = 28 if image_size is None else image_size
        channels = 1 if channels is None else channels
        classes = 10 if classes is None else classes
        check_counts(stages=stages, width=width)
        maps = [width * 2**stage for stage in range(stages)]
        out = maps[-1] if feature_width is None else feature_width
        check_sizes("SmallResNet", stages - 1, image_size, channels=channels, classes=classes, feature_width=out)
        self.image_size, self.channels, self.classes = image_size, channels, classes
        self.width, self.stages, self.feature_width = width, stages, feature_width
        nn = torch.nn
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            BasicBlock(width, width, 1, BatchNorm),
            *(BasicBlock(before, after, 2, BatchNorm) for before, after in pairwise(maps)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            WidthPooling(out),
        )
        self.linear = nn.Linear(out, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, feature_width)."""
        z: Tensor = self.layers(inputs)
        return z
