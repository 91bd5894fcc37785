"""The block of two convolutions that ResNet-18 is made of, with group normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """conv3x3 - norm - ReLU - conv3x3 - norm, plus the shortcut, then ReLU (He et al., CVPR 2016).

    The shortcut is the input itself, or a 1x1 convolution with a normalisation of its own where the shape changes.
    No convolution has a bias: the normalisation after it has one.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Stride of the first convolution; 2 halves the maps.
        groups: Groups of every GroupNorm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.GroupNorm(groups, outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride), halves rounded up."""
        main = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        main = self.norm2(self.conv2(main))
        return F.relu(main + self.shortcut(maps), inplace=True)
