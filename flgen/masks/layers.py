"""Layers whose weights never change: what is learnt is which of them to keep (PRISM, section 1).

A masked layer owns frozen weights `w` and a score `s` per weight. A forward pass gets a mask `m` of zeros and
ones from the layer's `masking` and computes the ordinary dense operator with `w * m`. There are three maskings:
`Sampled` draws `m ~ Bernoulli(sigmoid(s))` anew at every forward, in training and in evaluation; `Fixed` uses a
given mask; `TopK` keeps the weights with the largest `|s|`. `flgen.masks.network` sets the masking of a whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flgen.masks.initialisation import Fan, ScoreInit, WeightInit, frozen_values, score_values

GradientRule = Literal["identity", "scaled_p", "magnitude"]
Part = Literal["weight", "bias"]


def draw_mask(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Draw `m ~ Bernoulli(sigmoid(scores))`, elementwise independent.

    On the CPU one draw for a flat vector gives the same bits as successive draws for its slices.

    Args:
        scores: Scores of any shape, float32.
        generator: Where the uniform numbers come from; it may live on another device than the scores.

    Returns:
        Zeros and ones, float32, shape and device of `scores`.
    """
    uniform = torch.rand(scores.shape, generator=generator, device=generator.device).to(scores.device)
    return uniform.lt_(torch.sigmoid(scores.detach()))  # five times faster than torch.bernoulli on the CPU


def threshold_mask(scores: Tensor) -> Tensor:
    """Return 1 where `sigmoid(scores) > 0.5`, else 0 (float32, shape of `scores`)."""
    return (scores.detach() > 0).to(scores.dtype)


def top_k_mask(scores: Tensor, kept: float) -> Tensor:
    """Return 1 for the share `kept` of the scores with the largest magnitude, else 0 (section 1.5).

    Args:
        scores: Scores of one layer, float32, n elements.
        kept: Kept fraction in [0, 1]; round((1 - kept) * n) elements are zeroed.
    """
    zeroed = round((1 - kept) * scores.numel())
    order = torch.argsort(scores.detach().abs().flatten(), stable=True)
    mask = torch.ones_like(order, dtype=scores.dtype)
    mask[order[:zeroed]] = 0
    return mask.view_as(scores)


class Masking(Protocol):
    """Decides the mask of a layer's forward pass, and how its gradient reaches the scores.

    `identity`: dL/ds = dL/dm * p(1-p), p = sigmoid(s); `scaled_p`: that times p; `magnitude`: dL/dm * sign(s).
    """

    @property
    def rule(self) -> GradientRule: ...

    def mask(self, scores: Tensor, part: Part) -> Tensor:
        """Return the mask (float32, shape of `scores`) of a layer's weight or bias."""
        ...


@dataclass(frozen=True)
class Sampled:
    """A fresh Bernoulli(sigmoid(s)) mask at every forward."""

    generator: torch.Generator
    rule: GradientRule = "identity"

    def mask(self, scores: Tensor, part: Part) -> Tensor:
        return draw_mask(scores, self.generator)


@dataclass(frozen=True)
class Fixed:
    """The same given mask at every forward."""

    masks: Mapping[Part, Tensor]
    rule: GradientRule = "identity"

    def mask(self, scores: Tensor, part: Part) -> Tensor:
        return self.masks[part]


@dataclass(frozen=True)
class TopK:
    """The weights with the largest |s|, a fraction `kept` of each tensor."""

    kept: float
    rule: GradientRule = "magnitude"

    def mask(self, scores: Tensor, part: Part) -> Tensor:
        return top_k_mask(scores, self.kept)


class _MaskedValue(torch.autograd.Function):
    """`w * m`, differentiated with respect to the scores although the mask is a constant of the graph."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, frozen: Tensor, mask: Tensor, rule: GradientRule) -> Tensor:
        ctx.save_for_backward(scores, frozen)
        ctx.rule = rule
        return frozen * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scores, frozen = ctx.saved_tensors
        gradient = gradients[0] * frozen  # dL/dm
        if ctx.rule == "magnitude":
            return gradient.mul_(scores.sign()), None, None, None
        theta = torch.sigmoid(scores)
        if ctx.rule == "scaled_p":
            gradient.mul_(theta)
        return gradient.mul_(theta).mul_(theta.neg_().add_(1)), None, None, None


def masked_value(frozen: Tensor, scores: Tensor, mask: Tensor, rule: GradientRule) -> Tensor:
    """Return `frozen * mask` with the straight-through gradient of section 1.4 on `scores` (all of one shape)."""
    value: Tensor = _MaskedValue.apply(scores, frozen, mask, rule)
    return value


class MaskedLayer(nn.Module):
    """What masked layers share: frozen values, scores, and the masking in force.

    A layer starts with zero weights and zero scores; `reset_weights` and `reset_scores` give it values.

    Args:
        shape: Shape of the weight.
        fan: Fan of the weight.
        bias: Length of the bias; 0 for none. Frozen and masked as the weights are.
    """

    weight: Tensor
    scores: nn.Parameter
    bias: Tensor | None
    bias_scores: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], fan: Fan, bias: int) -> None:
        super().__init__()
        self.fan = fan
        self.masking: Masking | None = None
        self.register_buffer("weight", torch.zeros(shape))
        self.scores = nn.Parameter(torch.zeros(shape))
        self.register_buffer("bias", torch.zeros(bias) if bias else None)
        self.register_parameter("bias_scores", nn.Parameter(torch.zeros(bias)) if bias else None)

    def parts(self) -> Iterator[tuple[Part, Tensor, nn.Parameter]]:
        """Yield (part, frozen values, scores) of the weight, then of the bias if there is one."""
        yield "weight", self.weight, self.scores
        if self.bias is not None and self.bias_scores is not None:
            yield "bias", self.bias, self.bias_scores

    @torch.no_grad()
    def reset_weights(self, kind: WeightInit, generator: torch.Generator) -> None:
        """Draw the frozen values from a CPU generator; a bias gets the magnitude of the layer's weights."""
        for _, frozen, _ in self.parts():
            if not frozen.is_meta:  # a network that is only to be measured may be too large to draw
                frozen.copy_(frozen_values(frozen.shape, self.fan, kind, generator))

    @torch.no_grad()
    def reset_scores(self, kind: ScoreInit, generator: torch.Generator) -> None:
        """Draw the scores, in place."""
        for _, _, scores in self.parts():
            if not scores.is_meta:
                scores.copy_(score_values(scores.shape, self.fan, kind, generator))

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return the masked weight and the masked bias, if there is one, for one forward pass.

        Raises:
            RuntimeError: No masking was set.
        """
        if self.masking is None:
            raise RuntimeError(
                "a masked layer was called before its masks were chosen: "
                "call flgen.masks.network.sample_masks(network, generator), or fix_masks(network, mask), first"
            )
        values = [
            masked_value(frozen, scores, self.masking.mask(scores, part), self.masking.rule)
            for part, frozen, scores in self.parts()
        ]
        return values[0], values[1] if len(values) > 1 else None


class MaskedLinear(MaskedLayer):
    """`torch.nn.Linear` with frozen, masked weights (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__((out_features, in_features), Fan(in_features, in_features), out_features if bias else 0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        weight, bias = self.effective()
        return F.linear(inputs, weight, bias)


class MaskedConv2d(MaskedLayer):
    """`torch.nn.Conv2d` with frozen, masked weights (C_out, C_in, k, k)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> None:
        receptive = in_channels * kernel_size**2
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        super().__init__(shape, Fan(receptive, receptive), out_channels if bias else 0)
        self.stride, self.padding = stride, padding

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        weight, bias = self.effective()
        return F.conv2d(images, weight, bias, stride=self.stride, padding=self.padding)


class MaskedConvTranspose2d(MaskedLayer):
    """`torch.nn.ConvTranspose2d` with frozen, masked weights (C_in, C_out, k, k)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> None:
        area = kernel_size**2
        shape = (in_channels, out_channels, kernel_size, kernel_size)
        super().__init__(shape, Fan(out_channels * area, in_channels * area), out_channels if bias else 0)
        self.stride, self.padding = stride, padding

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        weight, bias = self.effective()
        return F.conv_transpose2d(images, weight, bias, stride=self.stride, padding=self.padding)
