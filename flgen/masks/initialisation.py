"""Initial values of masked layers: frozen weights from a seed, scores from a generator (PRISM, 1.2 and 1.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flgen.federation.streams import RandomStreams

WeightInit = Literal["signed_constant", "me_init", "kaiming_normal", "normal10"]
ScoreInit = Literal["normal", "uniform", "kaiming_uniform"]


@dataclass(frozen=True)
class Fan:
    """The sizes of a weight tensor that its initial magnitude depends on.

    Args:
        fan_in: Dimension 1 of the weight times its kernel's area. For a transposed convolution, whose weight is
            (C_in, C_out, kh, kw), this is C_out * kh * kw, as everywhere in PyTorch.
        receptive: Input channels times the squared height of the kernel, whatever the tensor's layout.
    """

    fan_in: int
    receptive: int


def weight_generator(weight_seed: int, layer: int) -> torch.Generator:
    """Return the CPU generator that draws the frozen weights of one layer, the same on every machine and device.

    Args:
        weight_seed: The seed that stands for all frozen weights of a network.
        layer: Index of the layer in forward order.
    """
    return RandomStreams(weight_seed).torch(f"frozen weights of layer {layer}")


def frozen_values(shape: torch.Size, fan: Fan, kind: WeightInit, generator: torch.Generator) -> Tensor:
    """Draw frozen weights (float32, on the CPU).

    Args:
        shape: Shape of the tensor.
        fan: Fan of the layer that the tensor belongs to.
        kind: `signed_constant`: +-sqrt(2 / fan_in); `me_init`: +-e * sqrt(1 / receptive);
            `kaiming_normal`: N(0, 2 / fan_in); `normal10`: N(0, 10^2).
        generator: A CPU generator.
    """
    if kind == "kaiming_normal":
        return torch.randn(shape, generator=generator).mul_(math.sqrt(2 / fan.fan_in))
    if kind == "normal10":
        return torch.randn(shape, generator=generator).mul_(10.0)
    magnitude = math.sqrt(2 / fan.fan_in) if kind == "signed_constant" else math.e * math.sqrt(1 / fan.receptive)
    # The sign is a fair coin: the sign of a drawn number would now and then be zero.
    heads = torch.randint(0, 2, shape, generator=generator, dtype=torch.float32)
    return heads.mul_(2).sub_(1).mul_(magnitude)


def score_values(shape: torch.Size, fan: Fan, kind: ScoreInit, generator: torch.Generator) -> Tensor:
    """Draw initial scores (float32, on the generator's device).

    Args:
        shape: Shape of the tensor.
        fan: Fan of the layer that the tensor belongs to.
        kind: `normal`: N(0, 1); `uniform`: U(-0.1, 0.1); `kaiming_uniform`: U(-b, b) with b = 1 / sqrt(fan_in).
        generator: The generator to draw from.
    """
    values = torch.empty(shape, device=generator.device)
    if kind == "normal":
        return values.normal_(generator=generator)
    bound = 0.1 if kind == "uniform" else 1 / math.sqrt(fan.fan_in)
    return values.uniform_(-bound, bound, generator=generator)
