"""The block of two convolutions that small residual networks are made of, with any normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """conv3x3 - norm - ReLU - conv3x3 - norm, plus the shortcut, then ReLU (He et al., CVPR 2016).

    The shortcut is the input itself, or where the shape changes a 1x1 convolution with a normalisation of its own
    (their option B), or without any weight every `stride`-th pixel with zeros for the new channels (option A). No
    convolution has a bias: the normalisation after it has one.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Stride of the first convolution; 2 halves the maps.
        norm: Makes the normalisation of a number of channels.
        projects: Whether the shortcut is a convolution where the shape changes.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module], projects: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            if projects:
                self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
                self.shortcut.append(norm(outputs))
            else:
                self.shortcut.append(PaddedShortcut(stride, outputs - inputs))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride), halves rounded up."""
        main = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        main = self.norm2(self.conv2(main))
        return F.relu(main + self.shortcut(maps), inplace=True)


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, and zeros for the channels that are new, half of them before the old ones.

    Args:
        stride: Distance of the pixels that are kept.
        added: Channels of zeros, an even number.
    """

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + added, H / stride, W / stride), halves rounded up."""
        return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2))
