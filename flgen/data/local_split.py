"""What each client trains on, holds back for validation, and is tested on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from flgen.data.labelled_data import LabelledData
from flgen.data.local_test import local_test_rows
from flgen.data.partition import Partitioner
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np = deferred_module("numpy")
    torch = deferred_module("torch")

Draws = Callable[..., "np.random.Generator"]
"""Returns a stream of random numbers by purpose and client, such as `RandomStreams.numpy`."""

ROUNDING = 1e-9  # so that 0.29 of 100 samples are 29, not 28


@dataclass(frozen=True)
class LocalSplit:
    """Where a client's test samples come from, and how much of its data it holds back to choose a round by.

    Args:
        test: "common": a client is tested on samples of the data set's test split that have its mix of classes; "own":
            training and test samples are dealt out to clients as one set, and each client divides its own at random.
        test_fraction: With "own", share of a client's samples that it is tested on, rounded up.
        merge_test: With "own", whether the data set's test samples are dealt out, too, or left unused.
        validation_fraction: Share of a client's training samples that it does not train on, rounded down, but on which
            its model is also measured, so that a round can be chosen without a look at test samples.

    Raises:
        UsageError: A share is out of its range.

    Source: fedktl.md, section 4, and section 8, item 8.
    """

    test: Literal["common", "own"] = "common"
    test_fraction: float = 0.25
    merge_test: bool = True
    validation_fraction: float = 0.0

    def __post_init__(self) -> None:
        option_ranges.shares("split", test_fraction=self.test_fraction)
        if not 0 <= self.validation_fraction < 1:
            raise UsageError(
                f"--split.validation_fraction is {self.validation_fraction}: give a share from 0 to below 1"
            )

    @property
    def divides(self) -> bool:
        """Whether clients divide what they get."""
        return self.test == "own" or self.validation_fraction > 0

    @property
    def in_force(self) -> dict[str, Any]:
        """The options that matter, by name: what a checkpoint must agree with."""
        own = {"test_fraction": self.test_fraction, "merge_test": self.merge_test} if self.test == "own" else {}
        return {"test": self.test, **own, "validation_fraction": self.validation_fraction}

    def check(self, data: LabelledData) -> None:
        """Refuse to divide clients whose samples were stored client by client.

        Raises:
            UsageError: They were, and this split would.
        """
        if data.divisible or not self.divides:
            return
        option = "--split.test own" if self.test == "own" else f"--split.validation_fraction {self.validation_fraction}"
        raise UsageError(
            f"{option} divides the samples of each client, but those of --data {type(data).__name__} are stored as "
            "they are: give --data the data set that they were made of, with its --partition, or leave the option out"
        )


class ClientRows(NamedTuple):
    """The samples of one client, int64 arrays, ascending where the client divided them.

    Args:
        train: Rows of the training samples that it trains on.
        validation: Rows of the training samples that it holds back.
        test: Rows of the test samples.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class DealtData:
    """A data set and what each client has of it.

    Args:
        data: The data set; with test samples of the clients' own, one whose test split is all of these together and
            whose training split is what is left to them.
        clients: Rows of `data`, one entry per client.
        dealt: Rows of the set that was dealt out, one int64 array per client: those to train on, to validate with and,
            if they are the client's own, to be tested on.
    """

    data: LabelledData
    clients: list[ClientRows]
    dealt: list[np.ndarray]


def deal(
    data: LabelledData, partitioner: Partitioner, split: LocalSplit, generator: np.random.Generator, draws: Draws
) -> DealtData:
    """Deal a data set out to clients and divide what each of them gets; the data set itself stays as it is.

    Args:
        data: Loaded.
        partitioner: Who gets what.
        split: How a client's samples are divided.
        generator: Source of the partitioner's choices.
        draws: Returns the streams of the clients' own choices.

    Raises:
        UsageError: The division is impossible, or leaves a client nothing to train on.
    """
    split.check(data)
    own = split.test == "own"
    pooled = data.redivided(data.train.followed_by(data.test), data.test) if own and split.merge_test else data
    shares = pooled.split_clients(partitioner, generator)
    divided = [
        _divide(client, rows, split, draws) if split.divides else ClientRows(rows, rows[:0], rows[:0])
        for client, rows in enumerate(shares)
    ]
    dealt = [np.concatenate(rows) for rows in divided]
    if not own:
        tests = _common_tests(data, shares, draws)
        return DealtData(data, [rows._replace(test=test) for rows, test in zip(divided, tests, strict=True)], dealt)
    # Numbered anew among what is left to train on, and among all tests, so that neither split has a row of the other.
    left = np.sort(np.concatenate([rows for client in divided for rows in (client.train, client.validation)]))
    tested = np.sort(np.concatenate([client.test for client in divided]))
    clients = [
        ClientRows(
            np.searchsorted(left, client.train),
            np.searchsorted(left, client.validation),
            np.searchsorted(tested, client.test),
        )
        for client in divided
    ]
    train, test = (pooled.train.subset(torch.from_numpy(rows)) for rows in (left, tested))
    return DealtData(pooled.redivided(train, test), clients, dealt)


def _common_tests(data: LabelledData, shares: Sequence[np.ndarray], draws: Draws) -> list[np.ndarray]:
    """Return rows of the common test samples for each client, by the mix of all that it got."""
    generators = [draws("local test", client=client) for client in range(len(shares))]
    return local_test_rows(data.label_table(shares), data.test.labels.numpy(force=True), generators)


def _divide(client: int, rows: np.ndarray, split: LocalSplit, draws: Draws) -> ClientRows:
    """Divide what one client got, at random: test samples if they are its own, then validation samples."""
    left, test = rows, rows[:0]
    if split.test == "own":
        held_back = max(1, math.ceil(split.test_fraction * len(rows) - ROUNDING)) if len(rows) else 0
        left, test = _hold_back(rows, held_back, draws("own test", client=client))
    held_back = int(split.validation_fraction * len(left) + ROUNDING)
    train, validation = _hold_back(left, held_back, draws("own validation", client=client))
    if len(train) == 0:
        raise UsageError(
            f"client {client} gets {len(rows)} sample{'' if len(rows) == 1 else 's'}, of which --split leaves none to "
            "train on: lower --split.test_fraction or --split.validation_fraction, lower --partition.clients, or raise "
            "--partition.min_samples"
        )
    return ClientRows(train, validation, test)


def _hold_back(rows: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle rows, and return all but `count` of them, and those; both ascending."""
    order = generator.permutation(rows)
    return np.sort(order[count:]), np.sort(order[:count])
