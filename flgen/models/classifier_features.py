"""The ReLU outputs of a small trained classifier, as a feature network for images that no pretrained one knows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flgen.metrics.trained import TrainedExtractor

Layers = Literal["all", "last"]


class ClassifierFeatures:
    """Maps images to the outputs of a classifier's ReLUs; its weights are constants, its batch normalisation is fixed.

    Args:
        extractor: The trained classifier, in eval mode and without gradients.
        layers: `all` ReLUs, the penultimate layer's among them, or the `last` alone, which is the penultimate layer.
    """

    def __init__(self, extractor: TrainedExtractor, layers: Layers) -> None:
        self._extractor = extractor
        self._layers = layers

    @property
    def channels(self) -> int:
        """Channels of the images that it was trained on."""
        return self._extractor.shape[0]

    @property
    def weights(self) -> list[Tensor]:
        """All numbers that decide its features."""
        return list(self._extractor.state_dict().values())

    def to(self, device: torch.device) -> ClassifierFeatures:
        """Move the weights to `device`, in place."""
        if self._extractor.mean.device != device:
            self._extractor.to(device)
        return self

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map images (B, C, H, W) in [-1, 1] to features (B, ...) in forward order; none is negative."""
        features: list[Tensor] = []
        maps = self._extractor.normalised((images + 1) * 127.5)
        for module in self._extractor.body:
            maps = module(maps)
            if isinstance(module, nn.ReLU):
                features.append(maps)
        return features if self._layers == "all" else features[-1:]
