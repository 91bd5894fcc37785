"""Loaders for an ordinary Lightning Trainer: float images in [-1, 1], cut from one tensor without workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flgen.data.image_set import ImageSet, to_unit_range


class UnitRangeImages(Dataset[tuple[Tensor, Tensor]]):
    """An image set as pairs of a float32 image (C, H, W) in [-1, 1] and its label; a batch is cut in one go."""

    def __init__(self, image_set: ImageSet) -> None:
        self._image_set = image_set

    def __len__(self) -> int:
        return len(self._image_set)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return to_unit_range(self._image_set.images[row]), self._image_set.labels[row]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows, dtype=torch.int64)
        return to_unit_range(self._image_set.images[chosen]), self._image_set.labels[chosen]


def unit_range_loader(
    image_set: ImageSet, batch_size: int, *, shuffle_seed: int | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader over an image set; it shuffles anew in every pass if it is given a seed."""
    return DataLoader(
        UnitRangeImages(image_set),
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        generator=torch.Generator().manual_seed(shuffle_seed or 0),
        collate_fn=_as_is,
    )


def _as_is(batch: Any) -> Any:
    return batch
