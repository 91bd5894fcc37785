"""Loaders for an ordinary Lightning Trainer: batches cut from one tensor in one go, without workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flgen.data.labelled_set import LabelledSet


class MappedSamples(Dataset[tuple[Tensor, Tensor]]):
    """A labelled set as pairs of a module's input and its label.

    Args:
        labelled_set: The samples.
        inputs_of: Maps a batch of stored samples (B, ...) to inputs (B, ...).
    """

    def __init__(self, labelled_set: LabelledSet, inputs_of: Callable[[Tensor], Tensor]) -> None:
        self._set = labelled_set
        self._inputs_of = inputs_of

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, labels = self.__getitems__([row])
        return inputs[0], labels[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows, dtype=torch.int64)
        return self._inputs_of(self._set.inputs[chosen]), self._set.labels[chosen]


def batch_loader(
    labelled_set: LabelledSet,
    inputs_of: Callable[[Tensor], Tensor],
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader over a labelled set; it shuffles anew in every pass if it is given a seed.

    Args:
        labelled_set: The samples.
        inputs_of: Maps a batch of stored samples (B, ...) to inputs (B, ...).
        batch_size: Samples per batch.
        shuffle_seed: Seed of the order; None keeps that of the set.
    """
    return DataLoader(
        MappedSamples(labelled_set, inputs_of),
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        generator=torch.Generator().manual_seed(shuffle_seed or 0),
        collate_fn=_as_is,
    )


def _as_is(batch: Any) -> Any:
    return batch
