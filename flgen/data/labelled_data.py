"""Labelled data of any kind as LightningDataModules that also know how to split themselves over clients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from flgen.data.partition import Partitioner, label_table
from flgen.deferred import TYPE_CHECKING, LightningDataModule, deferred_module
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    from flgen.data.client_data import ClientData
    from flgen.data.labelled_set import LabelledSet
else:
    np = deferred_module("numpy")


@dataclass(frozen=True)
class Layout:
    """What is known of a data set before it is read; each kind of data adds what its samples are like.

    Args:
        name: Name of the data set, as it appears in file names and metrics.
        class_names: One name per class, in the order of the labels.
    """

    name: str
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every stored sample."""
        raise TypeError(f"{type(self).__name__} is not a complete layout: it needs a property shape")

    @property
    def dtype(self) -> torch.dtype:
        """Type of every stored sample."""
        raise TypeError(f"{type(self).__name__} is not a complete layout: it needs a property dtype")


class LabelledData(LightningDataModule):
    """A set of training samples and a set of test samples, all of one shape, in memory as they are stored.

    A data set of your own derives from the kind of its samples (`ImageData`, `AudioData`) and defines `layout()` and
    `load()`; one of a new kind also says what its module takes, `standardize()`, and how a file becomes a sample,
    `decode_sample()`. `batch_size` and `shuffle_seed` matter to the loaders of an ordinary Trainer only: federated
    training takes its batches from `client_data`.
    """

    noun: ClassVar[str] = "samples"
    """What the samples are called in messages."""

    divisible: ClassVar[bool] = True
    """Whether clients may divide their samples further; not where these were stored client by client."""

    batch_size: int = 64
    shuffle_seed: int = 0

    def __init__(self) -> None:
        super().__init__()
        self._loaded: tuple[LabelledSet, LabelledSet] | None = None

    def layout(self) -> Layout:
        """Return name, classes, shape and type of the samples; nothing is decoded for it."""
        raise self._incomplete("layout")

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        """Read the data from where they are; return the training and the test samples."""
        raise self._incomplete("load")

    def standardize(self, stored: torch.Tensor) -> torch.Tensor:
        """Return samples as a module takes them.

        Args:
            stored: Tensor (B, *layout().shape) of the layout's type, on any device.

        Returns:
            Tensor (B, ...) on the same device.
        """
        raise self._incomplete("standardize")

    def decode_sample(self, content: bytes, extension: str) -> torch.Tensor:
        """Return one sample file as this data set stores its samples.

        Args:
            content: The file's bytes.
            extension: How its name ends, such as `.png`; the dot may be missing.

        Returns:
            Tensor of the layout's shape and type, on the CPU.

        Raises:
            FlgenError: If the file is no sample of this kind, or damaged.
        """
        raise self._incomplete("decode_sample")

    def _incomplete(self, method: str) -> TypeError:
        return TypeError(f"{type(self).__name__} is not a complete data set: it needs a method {method}")

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning declares a plain attribute
        """Name of the data set."""
        return self.layout().name

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        return self.layout().class_names

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.layout().class_names)

    def setup(self, stage: str | None = None) -> None:
        """Read the data into memory, once; `stage` makes no difference.

        Raises:
            UsageError: If what `load()` returns is not what `layout()` says.
            FlgenError: If files are missing or damaged, or a split is empty.
        """
        from flgen.data.labelled_set import describe

        if self._loaded is not None:
            return
        train, test = self.load()
        layout, classes = self.layout(), self.classes
        for split in (train, test):
            if len(split) == 0:
                raise FlgenError(f"{self.name} has a split without {self.noun}; give other data with `--data.root`")
            found = (split.inputs.shape[1:], split.inputs.dtype)
            if found != (layout.shape, layout.dtype) or not 0 <= split.labels.max() < classes:
                raise UsageError(
                    f"{self.name} has {self.noun} {describe(split.inputs)} with labels up to {split.labels.max()}, "
                    f"but its layout says {str(layout.dtype).removeprefix('torch.')} {layout.shape} and "
                    f"{classes} classes"
                )
        self._loaded = train, test

    @property
    def train(self) -> LabelledSet:
        """The training samples, in the order that partitions refer to."""
        return self._after_setup()[0]

    @property
    def test(self) -> LabelledSet:
        """The held-out samples."""
        return self._after_setup()[1]

    def _after_setup(self) -> tuple[LabelledSet, LabelledSet]:
        if self._loaded is None:
            raise FlgenError(f"{type(self).__name__} holds no data yet; call its setup() first")
        return self._loaded

    def shares_samples_with(self, other: LabelledData) -> bool:
        """Return whether a training sample of this data set is one of another's, or could be.

        What the other holds out counts, too: clients may have it (`--split.test own`). Samples of one shape and type
        are compared byte by byte, whatever the data sets are called. Others cannot be: then data sets of one class or
        of one name count as sharing some.

        Args:
            other: Loaded, as this one is.
        """
        ours, theirs = self.layout(), other.layout()
        if (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype):
            return not self.train.digests().isdisjoint(other.train.digests() | other.test.digests())
        return type(self) is type(other) or ours.name == theirs.name

    def redivided(self, train: LabelledSet, test: LabelledSet) -> Self:
        """Return the same data set with other training and test samples; this one stays as it is.

        Args:
            train: Its training samples, as `load()` would return them.
            test: Its test samples.
        """
        other = copy.copy(self)
        other._loaded = train, test
        return other

    def split_clients(self, partitioner: Partitioner, generator: np.random.Generator) -> list[np.ndarray]:
        """Deal the training samples out to clients.

        Args:
            partitioner: The rule.
            generator: Source of the rule's random choices.

        Returns:
            Rows of `train`, one int64 array per client.

        Raises:
            UsageError: If the rule cannot be met with these data.
        """
        attributes = {name: values.numpy(force=True) for name, values in self.train.attributes.items()}
        return partitioner.split(self.train.labels.numpy(force=True), attributes, generator)

    def label_table(self, partition: Sequence[np.ndarray]) -> np.ndarray:
        """Count each client's samples of each class: int64 array (clients, classes)."""
        return label_table(partition, self.train.labels.numpy(force=True), self.classes)

    def client_data(self, client: int, rows: np.ndarray, device: torch.device | str = "cpu") -> ClientData:
        """Return one client's data.

        Args:
            client: The client's number.
            rows: The client's entry of `split_clients`.
            device: Where batches are wanted.
        """
        from flgen.data.client_data import TensorClientData

        return TensorClientData(self.train, rows, device, self.classes)

    def client_test_data(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ClientData:
        """Return one client's share of the held-out samples.

        Args:
            rows: Rows of `test`, int64 array, such as the client's entry of `local_test_rows`.
            device: Where batches are wanted.
        """
        from flgen.data.client_data import TensorClientData

        return TensorClientData(self.test, rows, device, self.classes)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches (inputs as modules take them, labels) for an ordinary Lightning Trainer."""
        from flgen.data.batch_loader import batch_loader

        return batch_loader(self.train, self.standardize, self.batch_size, shuffle_seed=self.shuffle_seed)

    def test_dataloader(self) -> DataLoader:
        """Return batches (inputs as modules take them, labels) of the held-out samples, in order."""
        from flgen.data.batch_loader import batch_loader

        return batch_loader(self.test, self.standardize, self.batch_size)
