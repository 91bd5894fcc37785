"""FedGen's generator: of a label and noise it makes what a classifier's last layer sees (gptfl.md, section 6.8)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from flgen.federation.flat_parameters import named_parts


class FeatureGenerator(nn.Module):
    """z = G(eps, y): concat(eps, one-hot y), linear, BatchNorm, ReLU, linear.

    Args:
        classes: Number of labels.
        features: Elements of z, d_z.
        hidden: Width between the two linear layers.
        noise: Elements of eps, d_eps.
    """

    def __init__(self, classes: int, features: int, hidden: int, noise: int) -> None:
        super().__init__()
        self.classes, self.noise = classes, noise
        self.layers = nn.Sequential(
            nn.Linear(noise + classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, features)
        )

    def forward(self, eps: Tensor, y: Tensor) -> Tensor:
        """Map noise (B, d_eps) from U[0, 1] and labels int64 (B,) to features (B, d_z)."""
        one_hot = nn.functional.one_hot(y, self.classes).to(eps.dtype)
        z: Tensor = self.layers(torch.cat([eps, one_hot], dim=1))
        return z

    def draw(self, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noise (B, d_eps) for some labels, and G(eps, y) (B, d_z).

        Args:
            y: Labels int64 (B,), on the device.
            generator: CPU generator, source of the noise.
        """
        eps = torch.rand(len(y), self.noise, generator=generator).to(y.device)
        return eps, self(eps, y)


class Head(nn.Module):
    """The last layer of a classifier as a module, so that it can be called with the weights of any client.

    Args:
        classifier: Has `head`, from features (B, d_z) to logits (B, classes).
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, z: Tensor) -> Tensor:
        """Map features to logits."""
        logits: Tensor = self.classifier.head(z)
        return logits


class FlatHead(nn.Module):
    """h(w, z): the head of a classifier as a function of the vector of its parameters, any client's or a new one.

    Args:
        classifier: Has `head`, from features (B, d_z) to logits (B, classes).
        names: Names of the head's parameters among the classifier's.
    """

    def __init__(self, classifier: Any, names: Collection[str]) -> None:
        super().__init__()
        self.head = Head(classifier)
        self._stands_for = {
            f"classifier.{name}": parameter for name, parameter in classifier.named_parameters() if name in names
        }

    def forward(self, w: Tensor, z: Tensor) -> Tensor:
        """Map features (B, d_z) to logits (B, classes) by the head's parameters w (p_h,), in the classifier's order."""
        logits: Tensor = torch.func.functional_call(self.head, named_parts(w, self._stands_for), (z,))
        return logits
