"""The clients that `flgen partition` stored, as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from flgen.data.image_data import ImageData, ImageLayout
from flgen.data.partition import AsStored, Partitioner
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flgen.data.client_data import ClientData
    from flgen.data.image_set import ImageSet
    from flgen.data.shards import ShardIndex
else:
    np = deferred_module("numpy")


class ClientShards(ImageData):
    """A folder of webdataset shards, one set per client, that `flgen partition --output DIR` wrote.

    The partition is the stored one: `--partition AsStored`. Rows number the samples of all clients one after another.

    Args:
        root: The folder.
        memory_budget_mb: A client whose decoded images fit into this many MB (1e6 bytes) is read into memory, others
            are streamed. The budget is for each client by itself, so that a client's batches do not depend on which
            others share its process.
    """

    divisible = False

    def __init__(self, root: str = "data", memory_budget_mb: float = 1000.0) -> None:
        super().__init__()
        if memory_budget_mb < 0:
            raise UsageError(f"`--data.memory_budget_mb` is {memory_budget_mb}; it must be 0 or more")
        self.root = Path(root).expanduser()
        self.memory_budget_mb = memory_budget_mb
        self._test: ImageSet | None = None

    @cached_property
    def index(self) -> ShardIndex:
        """What the folder holds; read at first use."""
        from flgen.data.shards import read_index

        return read_index(self.root)

    def layout(self) -> ImageLayout:
        """Return name, classes, channels, size and normalisation of the stored images."""
        return self.index.layout

    def setup(self, stage: str | None = None) -> None:
        """Read the index and the test images, once; `stage` makes no difference."""
        from flgen.data.shards import load_split

        if self._test is None:
            self._test = load_split(self.index.test, self.index.layout.shape)

    @property
    def test(self) -> ImageSet:
        """The held-out images."""
        self.setup()
        assert self._test is not None
        return self._test

    @property
    def train(self) -> ImageSet:
        """The training images of all clients one after another; all of them are read into memory when this is used."""
        return self._all_clients

    @cached_property
    def _all_clients(self) -> ImageSet:
        import torch

        from flgen.data.image_set import ImageSet
        from flgen.data.shards import load_split

        parts = [load_split(client, self.index.layout.shape) for client in self.index.clients]
        names = set.intersection(*(set(part.attributes) for part in parts if len(part)))
        return ImageSet(
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels for part in parts]),
            {name: torch.cat([part.attributes[name] for part in parts if len(part)]) for name in sorted(names)},
        )

    @property
    def stored_partition(self) -> list[np.ndarray]:
        """Rows of each client, int64 arrays: consecutive numbers."""
        ends = np.cumsum([client.samples for client in self.index.clients])
        return [np.arange(end - client.samples, end) for end, client in zip(ends, self.index.clients, strict=True)]

    def split_clients(self, partitioner: Partitioner, generator: np.random.Generator) -> list[np.ndarray]:
        """Return the stored partition.

        Raises:
            UsageError: If another partitioner than AsStored is given.
        """
        if not isinstance(partitioner, AsStored):
            raise UsageError(
                f"{self.root} is already split into {len(self.index.clients)} clients; "
                f"use `--partition AsStored` in place of {type(partitioner).__name__}"
            )
        return self.stored_partition

    def label_table(self, partition: Sequence[np.ndarray]) -> np.ndarray:
        """Return the stored samples of each client and class: int64 array (clients, classes)."""
        return np.array([client.label_counts for client in self.index.clients], dtype=np.int64)

    def client_data(self, client: int, rows: np.ndarray, device: torch.device | str = "cpu") -> ClientData:
        """Return one client's data: read into memory now if they fit the budget, else streamed.

        Args:
            client: The client's number.
            rows: The client's entry of `split_clients`.
            device: Where batches are wanted.
        """
        import torch

        from flgen.data.client_data import StreamedClientData, TensorClientData
        from flgen.data.shards import load_split

        stored, shape = self.index.clients[client], self.index.layout.shape
        if stored.samples * shape[0] * shape[1] * shape[2] <= self.memory_budget_mb * 1e6:
            images = load_split(stored, shape).to(device)
            return TensorClientData(images, torch.arange(len(images)), device, self.classes)
        return StreamedClientData(stored.shards, torch.tensor(stored.label_counts), shape, device)
