"""Generators of images with ordinary weights, alone or with a discriminator, that the configuration can name."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, LightningModule, deferred_module
from flgen.errors import UsageError
from flgen.models.generators import ResidualGenerator
from flgen.models.losses import Loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")


class DenseGenerator(ResidualGenerator):
    """PRISM's residual generator with ordinary weights, all of which are trained (PRISM, section 2).

    It has as many weights as `ResnetGenerator` has scores, and nothing else to learn: what masks are compared with. It
    is built with the weights of seed 0; `reset_weights` draws others.

    Args:
        image_size: Height and width of the images in pixels: a power of two, at least 8. Null takes the data set's
            (from Python: 32).
        channels: Channels of the images: 1 for grey, 3 for colour. Null takes the data set's (from Python: 1).
        latent: Length of the noise vector.
        width: Channels of the last block; each block before it has twice as many as the next.
        loss: What each client minimises.

    Raises:
        UsageError: The size is not a power of two of at least 8, or another number is not positive.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        latent: int = 128,
        width: int = 64,
        loss: Loss | None = None,
    ) -> None:
        from flgen.models.residual import DENSE

        super().__init__(image_size, channels, latent, width, False, loss, DENSE)
        self.reset_weights(torch.Generator().manual_seed(0))

    def reset_weights(self, generator: torch.Generator) -> None:
        """Draw the weights in place, by He's rule.

        Args:
            generator: A CPU generator.
        """
        from flgen.models.dense_layers import draw_weights

        draw_weights(self, generator)


class ImageGAN(LightningModule):
    """A dense generator and a discriminator that judges its images.

    Both are built with the weights of seed 0; `reset_weights` draws others.

    Args:
        image_size: Height and width of the images in pixels: a power of two, at least 8. Null takes the data set's
            (from Python: 32).
        channels: Channels of the images: 1 for grey, 3 for colour. Null takes the data set's (from Python: 1).
        latent: Length of the noise vector.
        width: Channels of the generator's last block; each block before it has twice as many as the next.
        discriminator_width: Channels of the discriminator's first layer; each layer has twice as many as the one
            before it. Privacy noise grows with the number of its weights.

    Raises:
        UsageError: The size is not a power of two of at least 8, or another number is not positive.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        latent: int = 128,
        width: int = 64,
        discriminator_width: int = 64,
    ) -> None:
        super().__init__()
        from flgen.models.discriminator import ImageDiscriminator

        if discriminator_width < 1:
            raise UsageError(f"--model.discriminator_width {discriminator_width}: it must be at least 1")
        self.generator = DenseGenerator(image_size, channels, latent, width)
        self.image_size, self.channels = self.generator.image_size, self.generator.channels
        self.latent, self.width, self.discriminator_width = latent, width, discriminator_width
        self.discriminator = ImageDiscriminator(self.image_size, self.channels, discriminator_width)
        self.example_input_array = self.generator.example_input_array
        self.reset_weights(torch.Generator().manual_seed(0))

    def forward(self, noise: Tensor) -> Tensor:
        """Map noise (B, latent, 1, 1) to images (B, channels, image_size, image_size) in [-1, 1]."""
        images: Tensor = self.generator(noise)
        return images

    def reset_weights(self, generator: torch.Generator) -> None:
        """Draw the weights of the generator, then of the discriminator, in place, by He's rule.

        Args:
            generator: A CPU generator.
        """
        self.generator.reset_weights(generator)
        self.discriminator.reset_weights(generator)
