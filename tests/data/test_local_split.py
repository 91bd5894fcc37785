"""What each client trains on, holds back, and is tested on: no sample in two parts, and the data set left as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_data import RandomImages, assert_one_line, read

from flgen.data import IID, AsStored, ClientShards, Dirichlet, LocalSplit, Shards
from flgen.data.local_split import DealtData, deal
from flgen.data.shards import write_client_shards
from flgen.errors import UsageError
from flgen.federation.streams import RandomStreams


class Numbered(RandomImages):
    """100 training and 20 test images whose first pixel is their number."""

    def __init__(self) -> None:
        super().__init__(count=100)

    def load(self) -> Any:
        train, test = super().load()
        test = test.subset(torch.arange(20) % len(test))
        train.images[:, 0, 0, 0] = torch.arange(100)
        test.images[:, 0, 0, 0] = torch.arange(100, 120)
        return train, test


def dealt(data: Any, partition: Any = None, seed: int = 3, **options: Any) -> DealtData:
    draws = RandomStreams(seed).numpy
    return deal(data, partition or IID(4), LocalSplit(**options), draws("partition"), draws)


def numbers(images: Any, rows: np.ndarray) -> list[int]:
    return images.images[torch.from_numpy(rows), 0, 0, 0].tolist()


def parts(result: DealtData) -> list[tuple[list[int], list[int], list[int]]]:
    """Return the numbers of each client's images to train on, to validate with and to be tested on."""
    train, test = result.data.train, result.data.test
    return [
        (numbers(train, rows.train), numbers(train, rows.validation), numbers(test, rows.test))
        for rows in result.clients
    ]


def test_by_default_clients_train_on_all_they_get_and_are_tested_on_common_samples() -> None:
    data = read(Numbered())
    result = dealt(data)
    assert result.data is data
    shares = data.split_clients(IID(4), RandomStreams(3).numpy("partition"))
    for rows, share, whole in zip(result.clients, shares, result.dealt, strict=True):
        assert rows.train.tolist() == share.tolist() == whole.tolist()
        assert len(rows.validation) == 0
        assert set(rows.test.tolist()) <= set(range(20))


def test_training_and_test_samples_are_dealt_out_together_and_none_is_in_two_parts() -> None:
    result = dealt(read(Numbered()), test="own", validation_fraction=0.1)
    found = parts(result)
    assert [tuple(map(len, client)) for client in found] == [(20, 2, 8)] * 4  # 30 each; 8 = 7.5 rounded up; 2.2
    everything = [number for client in found for part in client for number in part]
    assert sorted(everything) == list(range(120))
    assert any(number >= 100 for client in found for number in client[0])  # former test images are trained on


def test_the_common_splits_become_those_of_the_clients() -> None:
    data = read(Numbered())
    result = dealt(data, test="own", validation_fraction=0.1)
    found = parts(result)
    tested = sorted(result.data.test.images[:, 0, 0, 0].tolist())
    left = sorted(result.data.train.images[:, 0, 0, 0].tolist())
    assert tested == sorted(number for client in found for number in client[2])
    assert left == sorted(number for client in found for part in client[:2] for number in part)
    # Each image still has its label.
    label_of = dict(zip(range(120), torch.cat([data.train.labels, data.test.labels]).tolist(), strict=True))
    for split in (result.data.train, result.data.test):
        assert split.labels.tolist() == [label_of[number] for number in split.images[:, 0, 0, 0].tolist()]
        assert split.attributes.keys() == {"even"}


def test_the_data_set_itself_is_not_changed_and_dealing_again_gives_the_same() -> None:
    data = read(Numbered())
    first = parts(dealt(data, test="own", validation_fraction=0.2))
    assert (len(data.train), len(data.test)) == (100, 20)
    assert parts(dealt(data, test="own", validation_fraction=0.2)) == first
    assert parts(dealt(read(Numbered()), test="own", validation_fraction=0.2)) == first
    assert parts(dealt(data, test="own", validation_fraction=0.2, seed=4)) != first
    assert dealt(data).data is data


def test_the_official_test_samples_may_stay_unused() -> None:
    found = parts(dealt(read(Numbered()), test="own", merge_test=False, test_fraction=0.2))
    assert sorted(number for client in found for part in client for number in part) == list(range(100))
    assert [tuple(map(len, client)) for client in found] == [(20, 0, 5)] * 4


def test_a_validation_part_is_held_back_from_training_alone() -> None:
    data = read(Numbered())
    plain, held = dealt(data), dealt(data, validation_fraction=0.29)
    for before, after in zip(parts(plain), parts(held), strict=True):
        assert (len(after[0]), len(after[1])) == (18, 7)  # 7.25, rounded down
        assert sorted([*after[0], *after[1]]) == sorted(before[0])
        assert after[2] == before[2]  # what a client is tested on does not depend on it
    assert held.data is data


def test_a_clients_division_is_its_own_whatever_the_validation_part() -> None:
    data = read(Numbered())
    with_it, without = parts(dealt(data, test="own", validation_fraction=0.5)), parts(dealt(data, test="own"))
    assert [client[2] for client in with_it] == [client[2] for client in without]
    # Clients with equally many samples do not hold back the same places of their shares.
    shares = [np.sort(np.array(client[0] + client[1] + client[2])) for client in without]
    held_back = [
        tuple(np.searchsorted(share, np.sort(client[2]))) for share, client in zip(shares, without, strict=True)
    ]
    assert len(set(held_back)) > 1


def test_shares_are_rounded_for_the_test_up_and_for_validation_down() -> None:
    labels = Dirichlet(5, alpha=0.5, min_samples=4)
    result = dealt(read(Numbered()), labels, test="own", test_fraction=0.25, validation_fraction=0.1)
    for rows in result.clients:
        n = len(rows.train) + len(rows.validation) + len(rows.test)
        assert len(rows.test) == -(-n // 4)
        assert len(rows.validation) == (n - len(rows.test)) // 10


def test_a_client_without_anything_to_train_on_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        dealt(read(RandomImages(count=4)), IID(4), test="own", merge_test=False)
    assert_one_line(
        caught.value, "client 0 gets 1 sample, of which --split leaves none to train on: lower --split.test"
    )


def test_clients_that_were_stored_client_by_client_are_not_divided(tmp_path) -> None:
    data = read(RandomImages())
    rows = data.split_clients(Shards(3, 2), np.random.default_rng(0))
    write_client_shards(data, rows, tmp_path / "shards", partitioner=Shards(3, 2).describe(), seed=0)
    stored = read(ClientShards(str(tmp_path / "shards")))
    assert [len(client.train) for client in dealt(stored, AsStored()).clients] == [30, 30, 30]
    for options, named in (
        ({"test": "own"}, "--split.test own"),
        ({"validation_fraction": 0.1}, "--split.validation_fraction 0.1"),
    ):
        with pytest.raises(UsageError) as caught:
            dealt(stored, AsStored(), **options)
        assert_one_line(caught.value, f"{named} divides the samples of each client, but those of --data ClientShards")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"test_fraction": 0.0}, "--split.test_fraction is 0.0: give a share between 0 and 1"),
        ({"test_fraction": 1.0}, "--split.test_fraction is 1.0"),
        ({"test_fraction": float("nan")}, "--split.test_fraction is nan"),
        ({"validation_fraction": -0.1}, "--split.validation_fraction is -0.1: give a share from 0 to below 1"),
        ({"validation_fraction": 1.0}, "--split.validation_fraction is 1.0"),
        ({"validation_fraction": float("nan")}, "--split.validation_fraction is nan"),
    ],
)
def test_shares_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LocalSplit(**options)


def test_what_a_checkpoint_must_agree_with_are_the_options_that_matter() -> None:
    assert LocalSplit(test_fraction=0.5).in_force == LocalSplit(merge_test=False).in_force == LocalSplit().in_force
    assert LocalSplit("own", 0.5).in_force == {
        "test": "own",
        "test_fraction": 0.5,
        "merge_test": True,
        "validation_fraction": 0.0,
    }
