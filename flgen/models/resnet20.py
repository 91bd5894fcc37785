"""ResNet-20 of the CIFAR experiments of He et al., without running statistics (GPT-FL, section 5.3)."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.models.classifiers import Classifier, check_sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

_SMALLEST = 8  # pixels; smaller images would leave maps of one pixel, of which a single image has no variance


class ResNet20(Classifier):
    """ResNet-20: a 3x3 convolution, three stages of three blocks, average pooling, one linear layer; trained by SGD.

    Shortcuts have no weights. BatchNorm always uses the statistics of the batch it sees, in tests too, so that there
    are no buffers to average over clients. Initial weights are PyTorch's own, hence those of `seed_everything`.

    Args:
        image_size: Height and width of the images in pixels, at least 8. Null takes the data set's (from Python: 32).
        channels: Channels of the images. Null takes the data set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        width: Channels of the first stage, an even number; the next ones have two and four times as many.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is too small, the width is odd, or a number is negative.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; GPT-FL, section 5.3.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        width: int = 16,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        from flgen.models.basic_block import BasicBlock

        image_size = 32 if image_size is None else image_size
        channels = 3 if channels is None else channels
        classes = 10 if classes is None else classes
        if image_size < _SMALLEST:
            raise UsageError(
                f"--model.image_size {image_size}: ResNet20 normalises over maps of a quarter of the side and needs at "
                f"least {_SMALLEST}"
            )
        check_sizes("ResNet20", 2, image_size, channels=channels, classes=classes, width=width)
        if width % 2:
            raise UsageError(f"--model.width {width}: ResNet20 pads its channels on both sides; give an even number")
        self.image_size, self.channels, self.classes, self.width = image_size, channels, classes, width

        def norm(maps: int) -> torch.nn.Module:
            return torch.nn.BatchNorm2d(maps, track_running_stats=False)

        def stage(inputs: int, outputs: int, stride: int) -> torch.nn.Sequential:
            first = BasicBlock(inputs, outputs, stride, norm, projects=False)
            return torch.nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, norm) for _ in range(2)))

        self.conv1 = torch.nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2)
        self.linear = torch.nn.Linear(4 * width, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, 4 * width)."""
        F = torch.nn.functional
        maps = F.relu(self.norm1(self.conv1(inputs)), inplace=True)
        for stage in (self.layer1, self.layer2, self.layer3):
            maps = stage(maps)
        return F.adaptive_avg_pool2d(maps, 1).flatten(1)
