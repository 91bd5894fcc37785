"""Clients whose losses are quadratics in double precision, for worked examples to nine places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peer_trial import Pull
from torch import Tensor


class Quadratic(Pull):
    """Loss a_k / 2 ||w - c_k||^2 of the client k that a batch belongs to.

    Args:
        start: Initial w.
        targets: c_k, by client.
        curvatures: a_k, by client; 1 for all if left out.
        learning_rate: Of SGD; at 1 and curvature 1 a step ends on the target.
    """

    def __init__(
        self,
        start: Sequence[float],
        targets: Sequence[Sequence[float]],
        curvatures: Sequence[float] | None = None,
        learning_rate: float = 0.1,
    ) -> None:
        super().__init__(start, targets, learning_rate)
        self.w = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
        self.targets = torch.tensor(targets, dtype=torch.float64)
        self.curvatures = curvatures or [1.0] * len(targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.curvatures[int(batch[1][0])] * super().training_step(batch, batch_idx)


def assert_close(tensor: Tensor, *values: float) -> None:
    """Equal to the nine places of the worked examples."""
    assert tensor.dtype == torch.float64
    assert torch.allclose(tensor, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-9), tensor
