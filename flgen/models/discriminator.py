"""The discriminator of an image GAN, without anything that mixes the images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flgen.models.dense_layers import DenseConv2d, draw_weights

SLOPE = 0.2
"""Of the leaky rectifiers below zero."""


class ImageDiscriminator(nn.Module):
    """Tells real images from generated ones: conv3x3, then 4x4 convolutions of stride 2 down to 4x4 maps, then a logit.

    There is no BatchNorm: with it an image's logit, and so the gradient, would depend on the other records of the
    batch. Each convolution but the first doubles the channels.

    Args:
        image_size: Height and width of the images in pixels: a power of two, at least 8.
        channels: Channels of the images.
        width: Channels behind the first convolution.
    """

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        halvings = image_size.bit_length() - 3  # to 4x4 maps
        layers: list[nn.Module] = [DenseConv2d(channels, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        for level in range(halvings):
            inputs = width << level
            layers += [DenseConv2d(inputs, 2 * inputs, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        self.features = nn.Sequential(*layers)
        self.logit = DenseConv2d(width << halvings, 1, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to logits (B,): above 0 they are taken for real."""
        logits: Tensor = self.logit(self.features(images))
        return logits.flatten()

    def reset_weights(self, generator: torch.Generator) -> None:
        """Draw the weights in place, by He's rule; biases are 0."""
        draw_weights(self, generator, SLOPE)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean of -ln D(x) over real images plus that of -ln(1 - D(x~)) over fakes, a scalar.

    Args:
        real: Logits of real images (B,).
        fake: Logits of generated ones (B,).
    """
    softplus = torch.nn.functional.softplus
    return softplus(-real.float()).mean() + softplus(fake.float()).mean()
