"""Ordinary convolutions whose weights are drawn by their network, from a stream of its own, not when they are built."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseConv2d(nn.Conv2d):
    """A convolution that begins with zeros; `draw_weights` gives it values."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        _set_to_zero(self.weight, self.bias)


class DenseConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that begins with zeros; `draw_weights` gives it values."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        _set_to_zero(self.weight, self.bias)


@torch.no_grad()
def draw_weights(module: nn.Module, generator: torch.Generator, slope: float = 0.0) -> None:
    """Draw the weights of all convolutions of a network by He's rule, N(0, 2 / ((1 + slope^2) fan_in)); biases are 0.

    The fan is PyTorch's, as for masked layers (PRISM, section 1.2): dimension 1 of the weight times the kernel's area.

    Args:
        module: The network; its layers are drawn in their order.
        generator: A CPU generator, so that the values are the same on every device.
        slope: Of the rectifier below zero; 0 for ReLU.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and not layer.weight.is_meta:
            drawn = torch.empty(layer.weight.shape)
            nn.init.kaiming_normal_(drawn, slope, nonlinearity="leaky_relu", generator=generator)
            layer.weight.copy_(drawn)
            _set_to_zero(layer.bias)


@torch.no_grad()
def _set_to_zero(*parameters: Tensor | None) -> None:
    for parameter in parameters:
        if parameter is not None:
            parameter.zero_()
