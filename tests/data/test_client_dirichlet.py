"""Equally large clients with label proportions of their own: laws, the published statistics, impossible requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.data import ClientDirichlet
from flgen.data.partition import label_table
from flgen.errors import UsageError

CIFAR_LABELS = np.repeat(np.arange(10), 5000)
SEEDS = st.integers(0, 2**32 - 1)


def split(partitioner: ClientDirichlet, labels: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    return partitioner.split(labels, {}, np.random.default_rng(seed))


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120),
    clients=st.integers(1, 12),
    alpha=st.floats(5e-324, 1e6),
    groups=st.none() | st.integers(1, 12),
    seed=SEEDS,
)
@settings(max_examples=80)
def test_every_client_gets_its_exact_share_and_no_sample_is_dealt_twice(labels, clients, alpha, groups, seed):
    clients = min(clients, len(labels))
    partitioner = ClientDirichlet(clients, alpha, None if groups is None else min(groups, clients))
    partition = split(partitioner, np.array(labels), seed)
    assert [len(indices) for indices in partition] == [len(labels) // clients] * clients
    dealt = np.concatenate(partition)
    assert dealt.dtype == np.int64
    assert len(np.unique(dealt)) == len(dealt)
    assert dealt.min() >= 0
    assert dealt.max() < len(labels)
    again = split(partitioner, np.array(labels), seed)
    assert all(np.array_equal(one, other) for one, other in zip(partition, again, strict=True))


def test_another_seed_gives_another_partition():
    one, other = (split(ClientDirichlet(5), np.repeat(np.arange(5), 40), seed) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_proportions_have_the_statistics_of_the_specification():
    # 3,000 clients: the standard errors are 0.003, 0.03 and below 0.005.
    priors = ClientDirichlet(3000, alpha=0.3).draw_proportions(10, np.random.default_rng(0))
    assert np.allclose(priors.sum(axis=1), 1.0)
    assert priors.max(axis=1).mean() == pytest.approx(0.461, abs=0.01)
    entropy = -(priors * np.log(np.maximum(priors, 1e-300))).sum(axis=1)
    assert np.exp(entropy).mean() == pytest.approx(4.33, abs=0.1)
    unit = priors / np.linalg.norm(priors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    assert cosines.mean() == pytest.approx(0.337, abs=0.01)


def test_a_hundred_clients_of_cifar_hold_what_their_proportions_say():
    partitioner = ClientDirichlet(100, alpha=0.3)
    table = label_table(split(partitioner, CIFAR_LABELS, seed=4), CIFAR_LABELS, 10)
    assert set(table.sum(axis=1)) == {500}
    assert set(table.sum(axis=0)) == {5000}  # 50,000 samples leave nothing over
    priors = partitioner.draw_proportions(10, np.random.default_rng(4))
    # Drawing 500 labels moves 0.04 of the mass; classes that are used up move some more.
    assert np.abs(table / 500 - priors).sum(axis=1).mean() / 2 < 0.2
    assert (table / 500).max(axis=1).mean() == pytest.approx(0.461, abs=0.06)


def test_a_class_is_dealt_out_in_random_order():
    (indices,) = split(ClientDirichlet(1), np.zeros(60, dtype=int))
    assert sorted(indices) == list(range(60))
    assert np.abs(np.diff(indices)).mean() > 10


def test_where_classes_run_out_the_rest_is_shared_in_proportion():
    # Nobody finds class 0 (6 samples) in stock for long; 2,994 of the other two classes are dealt out as they come.
    labels = np.repeat([0, 1, 2], [6, 1497, 1497])
    table = label_table(split(ClientDirichlet(3, alpha=1e6), labels), labels, 3)
    assert table.sum(axis=0).tolist() == [6, 1497, 1497]
    assert abs(table[:, 1] - 499).max() < 60


def test_clients_whose_classes_are_used_up_take_any_other():
    labels = np.repeat(np.arange(4), 25)
    table = label_table(split(ClientDirichlet(10, alpha=1e-12), labels), labels, 4)
    assert table.sum(axis=0).tolist() == [25] * 4
    assert (table > 0).sum(axis=1).max() > 1  # at this alpha one class each, and some are wanted more than they hold
    assert (table == 10).any()


def test_a_data_set_without_a_class_is_no_obstacle():
    labels = np.repeat([3, 8], 20)
    assert label_table(split(ClientDirichlet(4), labels), labels, 10).sum(axis=0)[[3, 8]].tolist() == [20, 20]


@pytest.mark.parametrize(
    ("clients", "groups", "of_client"),
    [(6, 3, [0, 0, 1, 1, 2, 2]), (7, 2, [0, 0, 0, 1, 1, 1, 1]), (5, 3, [0, 1, 2, 2, 2]), (4, 1, [0] * 4)],
)
def test_groups_are_runs_of_clients_and_the_last_takes_the_remainder(clients, groups, of_client):
    priors = ClientDirichlet(clients, alpha=0.5, groups=groups).draw_proportions(5, np.random.default_rng(0))
    _, group = np.unique(priors, axis=0, return_inverse=True)
    same = group.reshape(-1, 1) == group.reshape(1, -1)
    expected = np.array(of_client)[:, None] == np.array(of_client)
    assert np.array_equal(same, expected)


def test_clients_of_one_group_hold_alike_labels():
    labels = np.repeat(np.arange(10), 400)
    table = label_table(split(ClientDirichlet(8, alpha=0.3, groups=2), labels, seed=1), labels, 10)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit.T
    within = np.concatenate([cosines[:4, :4].ravel(), cosines[4:, 4:].ravel()])
    assert within.min() > cosines[:4, 4:].max()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ClientDirichlet(0), r"--partition.clients` is 0"),
        (lambda: ClientDirichlet(10, alpha=0.0), r"--partition.alpha` is 0.0"),
        (lambda: ClientDirichlet(10, alpha=-0.3), r"--partition.alpha` is -0.3"),
        (lambda: ClientDirichlet(10, alpha=float("nan")), r"--partition.alpha` is nan"),
        (lambda: ClientDirichlet(10, groups=0), r"--partition.groups` is 0.*among 1 to 10"),
        (lambda: ClientDirichlet(10, groups=11), r"--partition.groups` is 11 with `--partition.clients 10`"),
        (lambda: split(ClientDirichlet(31), np.zeros(30, dtype=int)), r"clients` is 31 but there are 30 training samp"),
    ],
)
def test_impossible_requests_are_refused_by_name(build, says):
    with pytest.raises(UsageError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_it_describes_itself_with_its_options():
    expected = {"class": "ClientDirichlet", "clients": 20, "alpha": 0.1, "groups": 4, "samples_per_client": None}
    assert ClientDirichlet(20, 0.1, 4).describe() == expected


def test_clients_can_be_given_fewer_samples_than_there_are() -> None:
    labels = np.arange(1000) % 10
    rows = ClientDirichlet(clients=4, samples_per_client=30).split(labels, {}, np.random.default_rng(0))
    assert [len(np.unique(of_client)) for of_client in rows] == [30] * 4
    with pytest.raises(UsageError, match=r"`--partition.samples_per_client` is 300 for 4 clients, but there are 1000"):
        ClientDirichlet(clients=4, samples_per_client=300).split(labels, {}, np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"`--partition.samples_per_client` is 0; it must be at least 1"):
        ClientDirichlet(samples_per_client=0)
