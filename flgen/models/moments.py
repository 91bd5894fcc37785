"""Matching the mean and variance of deep features (PRISM, sections 3.2 and 3.3).

A pair of moments is one tensor (2, D): row 0 the mean of each feature, row 1 its unbiased variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _FeatureMoments(torch.autograd.Function):
    """Moments over the batch; the backward pass is one fused multiply-add per feature tensor."""

    @staticmethod
    def forward(ctx: Any, *features: Tensor) -> Tensor:
        # Half-precision features (autocast) have float32 moments.
        dtype = torch.promote_types(features[0].dtype, torch.float32)
        moments = features[0].new_empty(2, sum(feature[0].numel() for feature in features), dtype=dtype)
        start = 0
        for feature in features:
            place = slice(start, start := start + feature[0].numel())
            mean = feature.mean(0, dtype=dtype)
            # Two passes take a sixth of the time of torch.var over the batch dimension on the CPU.
            variance = (feature - mean).square_().sum(0).div_(len(feature) - 1)
            moments[0, place], moments[1, place] = mean.flatten(), variance.flatten()
        ctx.save_for_backward(moments, *features)
        return moments

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        moments, *features = ctx.saved_tensors
        (gradient,) = gradients
        batch = len(features[0])
        # dL/df = dL/da / B + dL/db * 2 (f - a) / (B - 1) = f * slope + offset
        slope = gradient[1] * (2 / (batch - 1))
        offset = torch.addcmul(gradient[0] / batch, slope, moments[0], value=-1)
        results, start = [], 0
        for feature in features:
            place = slice(start, start := start + feature[0].numel())
            shape = feature.shape[1:]
            results.append(torch.addcmul(offset[place].view(shape), feature, slope[place].view(shape)))
        return tuple(results)


def feature_moments(features: Sequence[Tensor]) -> Tensor:
    """Return the moments (2, D) of a batch, differentiable.

    Args:
        features: Tensors (B, ...) with B at least 2; each is flattened, and they follow one another.
    """
    moments: Tensor = _FeatureMoments.apply(*features)
    return moments


class StreamingMoments:
    """Moments of a whole data set, batch by batch, in float64: float32 sums of squares cancel.

    Attributes:
        count: Samples seen so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, features: Sequence[Tensor]) -> None:
        """Take in one batch of features, each (B, ...)."""
        if not self._sums:
            self._sums = [torch.zeros_like(feature[0], dtype=torch.float64) for feature in features]
            self._squares = [torch.zeros_like(total) for total in self._sums]
        self.count += len(features[0])
        for feature, total, squares in zip(features, self._sums, self._squares, strict=True):
            exact = feature.double()
            total += exact.sum(0)
            squares += exact.square_().sum(0)

    def moments(self) -> Tensor:
        """Return the moments, float32 (2, D); at least two samples must have been seen."""
        total = torch.cat([part.flatten() for part in self._sums])
        squares = torch.cat([part.flatten() for part in self._squares])
        variance = (squares - total.square() / self.count) / (self.count - 1)
        return torch.stack([total / self.count, variance.clamp_min(0)]).float()


def moving_average_step(
    average: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    target: Tensor,
    learning_rate: float,
    betas: tuple[float, float] = (0.5, 0.999),
    eps: float = 1e-8,
) -> None:
    """Move `average` one Adam step towards `target`, in place (section 3.3, step 1).

    What Adam descends is the mean over D of (average - target)^2, so its gradient is 2 (average - target) / D: at
    D = 303,104 that is of the size of `eps`, which slows small differences down, and is kept as published.

    Args:
        average: The moving average (..., D).
        first: Adam's first moment, shape of `average`.
        second: Adam's second moment, shape of `average`.
        step: Number of steps taken so far, int64 (0-d); incremented.
        target: Shape of `average`, constant.
        learning_rate: Adam's learning rate.
        betas: Adam's decay rates.
        eps: Adam's denominator floor.
    """
    gradient = (average - target).mul_(2 / average.shape[-1])
    step += 1
    exact_step = step.double()  # float32 would lose the small difference 1 - beta^step
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    denominator = (second / (1 - betas[1] ** exact_step)).sqrt_().add_(eps)
    average.sub_((first * (learning_rate / (1 - betas[0] ** exact_step))).div_(denominator))


def linearised_loss(average: Tensor, target: Tensor, moments: Tensor) -> Tensor:
    """Return <v_mu, mu - a> + <v_var, var - b> with `average` held constant (section 3.3, step 2).

    Args:
        average: v, (2, D).
        target: Moments of the real images, (2, D).
        moments: Moments of the fake images, (2, D); gradients flow through them only.
    """
    return (average.detach() * (target - moments)).sum()


def moment_distance(target: Tensor, moments: Tensor) -> Tensor:
    """Return ||mu - a||^2 + ||var - b||^2, the distance to log: the loss itself is none."""
    return (target - moments.detach()).square().sum()
