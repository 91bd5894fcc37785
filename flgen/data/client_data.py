"""What a client sees of its own data: batches, by one interface, whether they sit in memory or on a disk."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flgen.data.labelled_set import LabelledSet
from flgen.data.shards import Shard, StoredSample, read_shards
from flgen.errors import UsageError

Batch = tuple[Tensor, Tensor]
"""Samples as they are stored, (B, ...), such as uint8 images (B, C, H, W), and int64 labels (B,), on one device."""


class ClientData(Protocol):
    """One client's training data."""

    @property
    def samples(self) -> int:
        """Number n_k of samples."""

    @property
    def label_counts(self) -> Tensor:
        """Samples of each class, int64 tensor (classes,) on the CPU."""

    def batches(
        self, batch_size: int, generator: torch.Generator, *, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[Batch]:
        """Yield shuffled batches, for a number of steps or of passes over the data.

        Args:
            batch_size: Samples per batch.
            generator: CPU generator, source of the order; the same state gives the same batches.
            steps: Number of batches, all full: a batch that a pass leaves unfinished is filled from the next one.
            epochs: Number of passes; the last batch of each may be smaller.

        Raises:
            UsageError: If not exactly one of `steps` and `epochs` is given, or the client has no samples.
        """

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once, in a fixed order; the last batch may be smaller."""

    def split(self, held_back: int, generator: torch.Generator) -> tuple[ClientData, ClientData]:
        """Return the data without `held_back` random samples, and those samples.

        Args:
            held_back: Number of samples, at least 1; at least 1 must be left.
            generator: CPU generator; the same state gives the same split.

        Raises:
            UsageError: If there are not enough samples, or they are streamed.
        """


class TensorClientData:
    """A client's rows of a labelled set, as one tensor on the device where they are used.

    On the set's own device nothing is copied: the rows are picked batch by batch. On another device the
    client's rows are moved there at the first batch. Where what a module takes is dear to compute, it is computed then
    for all of the client's samples and kept in their place.

    Args:
        labelled_set: The samples of all clients.
        indices: The client's rows, int64 array or tensor (n_k,).
        device: Where batches are wanted.
        classes: Number of classes; by default one more than the greatest label of the set.
        keeps: Maps stored samples (n, ...) to what is kept and handed out; by default the samples themselves.
    """

    def __init__(
        self,
        labelled_set: LabelledSet,
        indices: np.ndarray | Tensor,
        device: torch.device | str = "cpu",
        classes: int | None = None,
        keeps: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._set = labelled_set
        self._rows = torch.as_tensor(indices, dtype=torch.int64, device=labelled_set.inputs.device)
        self._device = torch.device(device)
        self._classes = classes
        self._keeps = keeps
        self._local: LabelledSet | None = None

    @property
    def samples(self) -> int:
        return len(self._rows)

    @property
    def label_counts(self) -> Tensor:
        labels = self._set.labels.index_select(0, self._rows)
        classes = int(self._set.labels.max()) + 1 if self._classes is None else self._classes
        return torch.bincount(labels, minlength=classes).cpu()

    def batches(
        self, batch_size: int, generator: torch.Generator, *, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[Batch]:
        check_request(self.samples, batch_size, steps, epochs)
        return self._shuffled(batch_size, generator, steps, epochs)

    def _shuffled(
        self, batch_size: int, generator: torch.Generator, steps: int | None, epochs: int | None
    ) -> Iterator[Batch]:
        if steps is not None:
            waiting = torch.empty(0, dtype=torch.int64)
            for _ in range(steps):
                while len(waiting) < batch_size:
                    waiting = torch.cat((waiting, torch.randperm(self.samples, generator=generator)))
                yield self._pick(waiting[:batch_size])
                waiting = waiting[batch_size:]
        for _ in range(epochs or 0):
            for positions in torch.randperm(self.samples, generator=generator).split(batch_size):
                yield self._pick(positions)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        for positions in torch.arange(self.samples).split(batch_size):
            if len(positions):
                yield self._pick(positions)

    def split(self, held_back: int, generator: torch.Generator) -> tuple[ClientData, ClientData]:
        if not 1 <= held_back < self.samples:
            raise UsageError(f"this client has {self.samples} samples: {held_back} cannot be held back")
        order = self._rows.index_select(0, torch.randperm(self.samples, generator=generator).to(self._rows.device))
        rest, held = order[held_back:].sort().values, order[:held_back].sort().values
        return (
            TensorClientData(self._set, rest, self._device, self._classes, self._keeps),
            TensorClientData(self._set, held, self._device, self._classes, self._keeps),
        )

    def _pick(self, positions: Tensor) -> Batch:
        if self._keeps is None and self._set.inputs.device == self._device:
            data, rows = self._set, self._rows.index_select(0, positions.to(self._rows.device))
        else:
            if self._local is None:
                self._local = self._set.subset(self._rows).to(self._device)
                if self._keeps is not None:
                    self._local = LabelledSet(self._keeps(self._local.inputs), self._local.labels)
            data, rows = self._local, positions.to(self._device)
        return data.inputs.index_select(0, rows), data.labels.index_select(0, rows)


class StreamedClientData:
    """A client's stored shards, decoded while they are read: at most `window` encoded samples are held at a time.

    The order of a pass is that of the shards, shuffled, and of the samples within a moving window; `flgen partition`
    stores a client's samples in random order, so that a window is a fair sample of the client.

    Args:
        shards: The client's tar files.
        label_counts: Samples of each class, int64 tensor (classes,).
        shape: (channels, height, width) of every image.
        device: Where batches are wanted.
        window: Samples among which the next one is drawn.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        label_counts: Tensor,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        window: int = 1000,
    ) -> None:
        self._shards = list(shards)
        self._label_counts = label_counts
        self._shape = shape
        self._device = torch.device(device)
        self._window = window

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self._shards)

    @property
    def label_counts(self) -> Tensor:
        return self._label_counts

    def batches(
        self, batch_size: int, generator: torch.Generator, *, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[Batch]:
        check_request(self.samples, batch_size, steps, epochs)
        return self._shuffled(batch_size, generator, steps, epochs)

    def _shuffled(
        self, batch_size: int, generator: torch.Generator, steps: int | None, epochs: int | None
    ) -> Iterator[Batch]:
        if steps is not None:
            passes = itertools.chain.from_iterable(self._one_pass(generator) for _ in itertools.repeat(None))
            yield from itertools.islice(self._batched(passes, batch_size), steps)
        for _ in range(epochs or 0):
            yield from self._batched(self._one_pass(generator), batch_size)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        samples = ((sample.image(self._shape), sample.label) for sample in self._read(self._shards))
        return self._batched(samples, batch_size)

    def split(self, held_back: int, generator: torch.Generator) -> tuple[ClientData, ClientData]:
        raise UsageError(
            "this client's samples are streamed and cannot be split: hold them in memory by --data.memory_budget_mb"
        )

    def _one_pass(self, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        order = random.Random(int(torch.randint(2**62, (), generator=generator)))
        shards = order.sample(self._shards, len(self._shards))
        for sample in self._read(shards, order):
            yield sample.image(self._shape), sample.label

    def _read(self, shards: Sequence[Shard], order: random.Random | None = None) -> Iterator[StoredSample]:
        return read_shards(shards, len(self._label_counts), window=self._window, order=order)

    def _batched(self, samples: Iterator[tuple[Tensor, int]], batch_size: int) -> Iterator[Batch]:
        while batch := list(itertools.islice(samples, batch_size)):
            images, labels = zip(*batch, strict=True)
            yield torch.stack(images).to(self._device), torch.tensor(labels, device=self._device)


def check_request(samples: int, batch_size: int, steps: int | None, epochs: int | None) -> None:
    """Refuse a request for batches that has no meaning, before the first batch is asked for.

    Raises:
        UsageError: If not exactly one of `steps` and `epochs` is given, or there is nothing to draw from.
    """
    if (steps is None) == (epochs is None):
        raise UsageError(f"batches are asked for by steps or by epochs, not with steps={steps} and epochs={epochs}")
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}; it must be at least 1")
    if samples == 0:
        raise UsageError("this client has no samples; lower `--partition.clients` or raise `--partition.min_samples`")
