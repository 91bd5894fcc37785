"""The smallest generator: a fixed random projection, for trials of a whole federation in milliseconds."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.synthesis.latent_generator import LatentGenerator

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = deferred_module("torch")


class RandomProjection(LatentGenerator):
    """Images sigmoid(A w) with a fixed random matrix A: nothing that anybody has learned (specification, section 2.2).

    Args:
        latent_dim: H.
        channels: 1 (grey) or 3 (RGB).
        image_size: Side of the images, pixels.
        seed: Of A, whose entries are N(0, 1).
        batch_size: Images drawn at once; it makes no difference to them.

    Raises:
        UsageError: A number is below 1.
    """

    def __init__(
        self,
        latent_dim: int = 8,
        channels: Literal[1, 3] = 3,
        image_size: int = 8,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        option_ranges.at_least(
            "method.generator", 1, latent_dim=latent_dim, image_size=image_size, batch_size=batch_size
        )
        self._latent_dim = latent_dim
        self.channels = channels
        self.image_size = image_size
        self.seed = seed
        self.batch_size = batch_size

    @property
    def latent_dim(self) -> int:
        """H, as the options say."""
        return self._latent_dim

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width), as the options say."""
        return self.channels, self.image_size, self.image_size

    def provenance(self) -> dict[str, str | None]:
        """Return that the seed is all there is."""
        return {**super().provenance(), "data": "none", "licence": "none", "seed": str(self.seed)}

    @cached_property
    def _projection(self) -> nn.Linear:
        rows = self.channels * self.image_size**2
        A = torch.nn.utils.skip_init(torch.nn.Linear, self.latent_dim, rows, bias=False)
        values = torch.randn(rows, self.latent_dim, generator=torch.Generator().manual_seed(self.seed))
        with torch.no_grad():
            A.weight.copy_(values)
        return A

    def networks(self) -> list[nn.Module]:
        """Return A."""
        return [self._projection]

    def draw(self, w: Tensor) -> Tensor:
        """Return sigmoid(A w) as images."""
        return torch.sigmoid(self._projection(w)).unflatten(1, self.image_shape)
