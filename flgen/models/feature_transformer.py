"""FedKTL's feature transformer: from a class prototype to a latent of a generator (fedktl.md, section 1.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureTransformer(nn.Module):
    """F: linear (K to K), BatchNorm, ReLU, linear (K to H).

    Args:
        prototype_dim: K.
        latent_dim: H.
    """

    def __init__(self, prototype_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(prototype_dim, prototype_dim),
            nn.BatchNorm1d(prototype_dim),
            nn.ReLU(),
            nn.Linear(prototype_dim, latent_dim),
        )

    def forward(self, P: Tensor) -> Tensor:
        """Map prototypes (B, K) to latents (B, H)."""
        Q: Tensor = self.layers(P)
        return Q


def initial_projection(features: int, latent_dim: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return h'_0, weight (H, d) and bias (H,) of a linear layer from features to latents, drawn as PyTorch does.

    Args:
        features: d.
        latent_dim: H.
        generator: On the CPU, source of the draws.
    """
    bound = features**-0.5
    shapes = {"weight": (latent_dim, features), "bias": (latent_dim,)}
    return {name: torch.empty(shape).uniform_(-bound, bound, generator=generator) for name, shape in shapes.items()}


def project(x: Tensor, h: dict[str, Tensor]) -> Tensor:
    """Return h(x) in float32 (B, H), also under autocast.

    Args:
        x: Features (B, d).
        h: Weight and bias, as `initial_projection` returns them.
    """
    with torch.autocast(x.device.type, enabled=False):
        return nn.functional.linear(x.float(), h["weight"], h["bias"])
