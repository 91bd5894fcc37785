"""Classifiers that the configuration can name."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, LightningModule, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")


class SmallCNN(LightningModule):
    """Two 5x5 convolutions, each with ReLU and 2x2 pooling, then two linear layers; trained by SGD.

    Its initial weights are PyTorch's own, hence those of `seed_everything`, as for any LightningModule.

    Args:
        image_size: Height and width of the images in pixels, at least 4. Null takes the data set's (from Python: 28).
        channels: Channels of the images. Null takes the data set's (from Python: 1).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        width: Channels of the first convolution; the second has twice as many.
        learning_rate: Learning rate of SGD.

    Raises:
        UsageError: A size is too small.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        width: int = 32,
        learning_rate: float = 0.1,
    ) -> None:
        super().__init__()
        image_size = 28 if image_size is None else image_size
        channels = 1 if channels is None else channels
        classes = 10 if classes is None else classes
        if image_size < 4:
            raise UsageError(f"--model.image_size {image_size}: SmallCNN halves an image twice and needs at least 4")
        for name, value in {"channels": channels, "classes": classes, "width": width}.items():
            if value < 1:
                raise UsageError(f"--model.{name} {value}: it must be at least 1")
        self.image_size, self.channels, self.classes, self.width = image_size, channels, classes, width
        nn = torch.nn
        self.learning_rate = learning_rate
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
            nn.Linear(4 * width, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, channels, H, W) in [-1, 1] to logits (B, classes)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of (images, labels), logged as train/loss."""
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log val/loss and val/accuracy."""
        self._log_scores("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log test/loss and test/accuracy."""
        self._log_scores("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def _log_scores(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self(images)
        self.log(f"{stage}/loss", torch.nn.functional.cross_entropy(logits, labels), batch_size=len(labels))
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log(f"{stage}/accuracy", accuracy, batch_size=len(labels))
