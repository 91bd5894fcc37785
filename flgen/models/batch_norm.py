"""Batch normalisation that also takes a batch in which a channel has one value."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """PyTorch's BatchNorm2d; where a channel of a training batch has a single value, the running statistics serve.

    One value has no variance, and PyTorch refuses it. A client whose last batch holds one small image would have to
    leave that image out, or end the round.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps (B, C, H, W)."""
        alone = maps.shape[0] * maps.shape[2] * maps.shape[3] == 1
        if self.training and alone and self.running_mean is not None:
            return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(maps)
