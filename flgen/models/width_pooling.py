"""Pooling of feature vectors to a width, so that unlike networks have features of one width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class WidthPooling(nn.Module):
    """Averages over bins of the feature axis; nothing is learnt.

    Bin j of the W that come out is the mean of the elements floor(j L / W) to ceil((j + 1) L / W) - 1 of the L that
    come in. Where L is below W, elements are repeated; where W does not divide L, neighbouring bins overlap.

    Args:
        width: Elements that come out, W.

    Source: fedktl.md, section 3, "Equal feature width".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, z: Tensor) -> Tensor:
        """Map features float (B, L) to (B, width)."""
        return F.adaptive_avg_pool1d(z.unsqueeze(1), self.width).squeeze(1)
