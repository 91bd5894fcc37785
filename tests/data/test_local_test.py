"""Local test sets: how many images of which class, and that clients draw for themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flgen.data import ClientDirichlet
from flgen.data.local_test import local_test_rows
from flgen.data.partition import label_table


def generators(clients: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, client]) for client in range(clients)]


def test_rows_are_the_ceilings_of_the_clients_shares():
    # ceil(11 / 3) = 4 images: 2 of class 0 and ceil(1 / 2) of each other; all 3 of class 1, for ceil(4) are wanted.
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    counts = np.array([[4, 1, 1], [0, 7, 0], [0, 0, 0]])
    first, second, third = local_test_rows(counts, labels, generators(3))
    assert np.bincount(labels[first], minlength=3).tolist() == [3, 1, 1]  # ceil(16 / 6), ceil(4 / 6), ceil(4 / 6)
    assert second.tolist() == [5, 6, 7]
    assert third.tolist() == []
    assert {rows.dtype for rows in (first, second, third)} == {np.dtype(np.int64)}


def test_whole_shares_are_not_rounded_up():
    assert 7 / 25 * 100 > 28  # floats would ask for 29
    (rows,) = local_test_rows(np.array([[7, 18]]), np.repeat([0, 1], 50), generators(1))
    assert (rows < 50).sum() == 28


@given(st.lists(st.lists(st.integers(0, 30), min_size=4, max_size=4), min_size=1, max_size=6), st.integers(0, 99))
def test_rows_are_ascending_of_the_clients_classes_and_none_twice(table, seed):
    counts = np.array(table)
    labels = np.random.default_rng(seed).integers(0, 4, 60)
    for client, rows in enumerate(local_test_rows(counts, labels, generators(len(table), seed))):
        assert (np.diff(rows) > 0).all()
        assert set(labels[rows]) <= set(np.flatnonzero(counts[client]))


def test_clients_draw_for_themselves_and_overlap():
    labels = np.repeat(np.arange(2), 50)
    counts = np.full((2, 2), 5)
    both = local_test_rows(counts, labels, generators(2))
    assert 0 < len(np.intersect1d(*both)) < 50
    alone = local_test_rows(counts, labels, [np.random.default_rng(77), generators(2)[1]])
    assert np.array_equal(alone[1], both[1])
    assert not np.array_equal(alone[0], both[0])


def test_every_image_of_a_class_is_drawn_equally_often():
    draws = local_test_rows(np.full((2000, 1), 3), np.zeros(40_000, dtype=int), generators(2000))
    assert {len(rows) for rows in draws} == {20}
    per_thousand = np.bincount(np.concatenate(draws) // 1000, minlength=40)
    assert abs(per_thousand - 1000).max() < 130  # four standard deviations of 32


def test_sizes_of_a_hundred_clients_of_cifar_are_those_of_the_specification():
    labels, test_labels = np.repeat(np.arange(10), 5000), np.repeat(np.arange(10), 1000)
    sizes = []
    for seed in range(3):
        partition = ClientDirichlet(100, alpha=0.3).split(labels, {}, np.random.default_rng(seed))
        table = label_table(partition, labels, 10)
        sizes += [len(rows) for rows in local_test_rows(table, test_labels, generators(100))]
    assert min(sizes) >= 100
    assert max(sizes) <= 107
    assert np.mean(sizes) == pytest.approx(103.5, abs=0.3)


def test_a_data_set_hands_out_a_clients_test_images(random_data):
    rows = np.array([1, 4, 11])
    client = random_data.client_test_data(rows)
    ((images, labels),) = client.in_order(10)
    assert torch.equal(images, random_data.test.images[[1, 4, 11]])
    assert torch.equal(labels, random_data.test.labels[[1, 4, 11]])
    assert client.label_counts.shape == (3,)
