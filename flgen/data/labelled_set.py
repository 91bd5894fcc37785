"""A set of labelled samples as it lives in memory: one tensor of inputs, their labels and their attributes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from flgen.errors import UsageError


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Samples of any kind with one label and any number of attributes each.

    Args:
        inputs: Tensor (N, ...) of any type: images, waveforms, tokens.
        labels: int64 tensor (N,), class ids from 0.
        attributes: Further values per sample by name, each an int64 tensor (N,).

    Raises:
        UsageError: If a tensor has another type or shape.
    """

    inputs: Tensor
    labels: Tensor
    attributes: dict[str, Tensor] = field(default_factory=dict)

    noun = "samples"
    """What the samples are called in messages."""

    def __post_init__(self) -> None:
        for name, values in {"labels": self.labels, **self.attributes}.items():
            if values.dtype != torch.int64 or values.shape != (len(self.inputs),):
                raise UsageError(f"{len(self.inputs)} {self.noun} need {name} as int64 (N,), not {describe(values)}")

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, indices: Tensor) -> Self:
        """Return a copy of the samples at `indices` (int64 tensor), in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.inputs.device)
        return type(self)(
            self.inputs.index_select(0, rows),
            self.labels.index_select(0, rows),
            {name: values.index_select(0, rows) for name, values in self.attributes.items()},
        )

    def followed_by(self, other: Self) -> Self:
        """Return a copy of these samples and those of another set behind them, with the attributes that both have."""
        return type(self)(
            torch.cat([self.inputs, other.inputs]),
            torch.cat([self.labels, other.labels]),
            {
                name: torch.cat([values, other.attributes[name]])
                for name, values in self.attributes.items()
                if name in other.attributes
            },
        )

    def digests(self) -> set[bytes]:
        """Return a digest of the bytes of each input, 16 bytes long; equal inputs have one digest."""
        rows = self.inputs.detach().cpu().contiguous().reshape(len(self), -1).view(torch.uint8).numpy()
        return {hashlib.blake2b(row, digest_size=16).digest() for row in rows}

    def to(self, device: torch.device | str) -> Self:
        """Return the set on `device`; tensors that are there already are shared, not copied."""
        return type(self)(
            self.inputs.to(device),
            self.labels.to(device),
            {name: values.to(device) for name, values in self.attributes.items()},
        )


def describe(tensor: Tensor) -> str:
    """Return a tensor's type and shape for a message, such as `float32 (3, 4)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
