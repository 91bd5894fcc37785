"""Who holds which classes: the published blocks by hand (fedktl.md, section 4 and check 9.13)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flgen.data.class_owners import balanced_owners, block_owners, unbalanced_sizes


def of_client(owners: list[list[int]], client: int) -> list[int]:
    return [number for number, of_class in enumerate(owners) if client in of_class]


@pytest.mark.parametrize(
    ("classes", "per_client", "sharing", "pairs"),
    [(10, 2, 4, 40), (100, 10, 2, 200), (102, 10, 2, 200), (200, 20, 2, 400)],
    ids=["CIFAR-10", "CIFAR-100", "Flowers-102", "Tiny-ImageNet"],
)
def test_twenty_clients_hold_the_published_blocks(classes, per_client, sharing, pairs) -> None:
    owners = block_owners(20, per_client, classes)
    assert sum(map(len, owners)) == pairs
    assert {len(of_class) for of_class in owners if of_class} == {sharing}
    for client in range(20):
        block = client // sharing
        assert of_client(owners, client) == list(range(block * per_client, (block + 1) * per_client))


def test_client_3_of_cifar_100_holds_ten_to_nineteen_and_flowers_lose_their_last_two_classes() -> None:
    assert of_client(block_owners(20, 10, 100), 3) == list(range(10, 20))
    flowers = block_owners(20, 10, 102)
    assert [number for number, of_class in enumerate(flowers) if not of_class] == [100, 101]


def test_the_number_of_owners_is_rounded_up() -> None:
    assert [len(of_class) for of_class in block_owners(30, 1, 10)] == [3] * 10
    assert [len(of_class) for of_class in block_owners(4, 2, 3)] == [3, 3, 1]  # client 3 runs out of classes


@given(clients=st.integers(1, 40), per_client=st.integers(1, 12), classes=st.integers(1, 40))
def test_in_blocks_nobody_holds_more_than_n_and_nobody_nothing(clients, per_client, classes) -> None:
    per_client = min(per_client, classes)
    owners = block_owners(clients, per_client, classes)
    held = [len(of_client(owners, client)) for client in range(clients)]
    assert 1 <= min(held) <= max(held) <= per_client
    assert max(map(len, owners)) <= -(-clients * per_client // classes)


def test_balanced_classes_have_as_many_owners_as_each_other() -> None:
    owners = balanced_owners(20, 10, 102, np.random.default_rng(0))
    assert {len(of_class) for of_class in owners} == {1, 2}
    assert all(len(of_client(owners, client)) == 10 for client in range(20))


@given(samples=st.integers(20, 1000), owners=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_unbalanced_shares_are_drawn_below_the_mean_and_the_last_takes_the_rest(samples, owners, seed) -> None:
    sizes = unbalanced_sizes(samples, owners, 0.4, np.random.default_rng(seed))
    assert sizes is not None
    assert (len(sizes), sizes.sum()) == (owners, samples)
    mean = samples / owners
    assert all(max(mean / 10, 0.4) <= size < mean for size in sizes[:-1])
    assert sizes[-1] >= mean


def test_unbalanced_shares_reach_both_ends_of_their_range() -> None:
    generator = np.random.default_rng(0)
    drawn = [int(unbalanced_sizes(100, 2, 4.0, generator)[0]) for _ in range(2000)]
    assert (min(drawn), max(drawn)) == (5, 49)  # [max(5, 4), 50)
    assert np.mean(drawn) == pytest.approx(27, abs=1)
    assert int(min(unbalanced_sizes(100, 2, 20.0, generator)[0] for _ in range(500))) == 20


def test_too_few_samples_have_no_unbalanced_shares() -> None:
    assert unbalanced_sizes(10, 5, 4.0, np.random.default_rng(0)) is None
    assert unbalanced_sizes(1, 1, 4.0, np.random.default_rng(0)).tolist() == [1]
