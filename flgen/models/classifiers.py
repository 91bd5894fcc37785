"""Classifiers that the configuration can name: what they share, and the small one."""

from __future__ import annotations

import math

from flgen.deferred import TYPE_CHECKING, LightningModule, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")


class Classifier(LightningModule):
    """Cross-entropy, accuracy and SGD; a subclass adds the network: `features`, and a last layer `linear`.

    Args:
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A number is negative.
    """

    linear: torch.nn.Module

    def __init__(self, learning_rate: float, weight_decay: float, momentum: float) -> None:
        super().__init__()
        options = {"learning_rate": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
        for name, value in options.items():
            if not 0 <= value < math.inf:
                raise UsageError(f"--model.{name} {value}: it must be a finite number of at least 0")
        self.learning_rate, self.weight_decay, self.momentum = learning_rate, weight_decay, momentum

    def features(self, inputs: Tensor) -> Tensor:
        """Map inputs to what the last layer sees, z (B, Z)."""
        raise TypeError(f"{type(self).__name__} is not a complete classifier: it needs a method features")

    def head(self, z: Tensor) -> Tensor:
        """Map z (B, Z) to logits (B, classes)."""
        logits: Tensor = self.linear(z)
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs, as the data set's `standardize` returns them, to logits (B, classes)."""
        return self.head(self.features(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of (inputs, labels), logged as train/loss."""
        inputs, labels = batch
        loss = torch.nn.functional.cross_entropy(self(inputs), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Log val/loss and val/accuracy; return predictions and labels, of which a whole pass has an F1."""
        return self._log_scores("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Log test/loss and test/accuracy; return predictions and labels, of which a whole pass has an F1."""
        return self._log_scores("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, momentum=self.momentum
        )

    def _log_scores(self, stage: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, labels = batch
        logits = self(inputs)
        self.log(f"{stage}/loss", torch.nn.functional.cross_entropy(logits, labels), batch_size=len(labels))
        predictions = logits.argmax(dim=1)
        self.log(f"{stage}/accuracy", (predictions == labels).float().mean(), batch_size=len(labels))
        return {"predictions": predictions, "labels": labels}


class SmallCNN(Classifier):
    """Two 5x5 convolutions, each with ReLU and 2x2 pooling, then two linear layers; trained by SGD.

    Its initial weights are PyTorch's own, hence those of `seed_everything`, as for any LightningModule.

    Args:
        image_size: Height and width of the images in pixels, at least 4. Null takes the data set's (from Python: 28).
        channels: Channels of the images. Null takes the data set's (from Python: 1).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        width: Channels of the first convolution; the second has twice as many.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.
        feature_width: Elements of z, by a pooling of the first linear layer's without weights; null is 4 * width.

    Raises:
        UsageError: A size is too small, or a number is negative.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        width: int = 32,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        feature_width: int | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        image_size = 28 if image_size is None else image_size
        channels = 1 if channels is None else channels
        classes = 10 if classes is None else classes
        check_sizes("SmallCNN", 2, image_size, channels=channels, classes=classes, width=width)
        self.image_size, self.channels, self.classes, self.width = image_size, channels, classes, width
        self.feature_width = feature_width
        z_width, pooling = 4 * width, []
        if feature_width is not None:
            from flgen.models.width_pooling import WidthPooling

            check_counts(feature_width=feature_width)
            z_width, pooling = feature_width, [WidthPooling(feature_width)]
        nn = torch.nn
        self.network = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (image_size // 4) ** 2, 4 * width),
            nn.ReLU(inplace=True),
            *pooling,
            nn.Linear(z_width, classes),
        )

    def features(self, inputs: Tensor) -> Tensor:
        """Map float images (B, channels, H, W), standardised, to z (B, feature_width)."""
        z: Tensor = self.network[:-1](inputs)
        return z

    def head(self, z: Tensor) -> Tensor:
        """Map z (B, feature_width) to logits (B, classes)."""
        logits: Tensor = self.network[-1](z)
        return logits


def check_sizes(model: str, halvings: int, image_size: int, **counts: int) -> None:
    """Refuse what a network cannot be built with.

    Args:
        model: Name of the network.
        halvings: How often it halves an image.
        image_size: Height and width of the images in pixels.
        **counts: Other sizes by the name of their option, each at least 1.

    Raises:
        UsageError: A size is too small.
    """
    times = {1: "once", 2: "twice"}.get(halvings, f"{halvings} times")
    if image_size < 2**halvings:
        raise UsageError(
            f"--model.image_size {image_size}: {model} halves an image {times} and needs at least {2**halvings}"
        )
    check_counts(**counts)


def check_counts(**counts: int) -> None:
    """Refuse sizes, by the name of their option, that are below 1.

    Raises:
        UsageError: One is.
    """
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"--model.{name} {value}: it must be at least 1")


def check_groups(groups: int, width: int) -> None:
    """Refuse groups of GroupNorm that do not divide the channels of every layer: multiples of `width`.

    Raises:
        UsageError: `groups` does not divide `width`.
    """
    if width % groups:
        raise UsageError(
            f"--model.groups {groups} does not divide --model.width {width}: give {math.gcd(groups, width)}, which does"
        )
