"""A client's images in memory, and generated ones, for tests of losses."""

from collections.abc import Iterator

import torch
from torch import Tensor


class Images:
    """A client's images in memory."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    @property
    def samples(self) -> int:
        return len(self.images)

    def batches(
        self, batch_size: int, generator: torch.Generator, *, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert steps is None
        for _ in range(epochs or 0):
            for rows in torch.randperm(self.samples, generator=generator).split(batch_size):
                yield self.images[rows], torch.zeros(len(rows), dtype=torch.int64)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images in self.images.split(batch_size):
            yield images, torch.zeros(len(images), dtype=torch.int64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int, channels: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=generator(seed), dtype=torch.uint8)


def fakes(count: int, channels: int = 1, size: int = 16, seed: int = 9) -> Tensor:
    return pixels(count, channels, size, seed).float() / 127.5 - 1
