"""Held-out splits depend on the data alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flgen.data.holdout import shuffled_holdout, stratified_holdout


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=200), fraction=st.floats(0.01, 0.99))
def test_every_class_of_two_or_more_is_on_both_sides(labels, fraction):
    labels = np.array(labels)
    kept, held_out = stratified_holdout(labels, fraction)
    assert np.array_equal(np.sort(np.concatenate((kept, held_out))), np.arange(len(labels)))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        taken = int((labels[held_out] == label).sum())
        assert abs(taken - count * fraction) <= 1
        assert (taken == 0) if count == 1 else (1 <= taken < count)


def test_a_split_is_the_same_in_every_call():
    labels = np.arange(100) % 7
    assert np.array_equal(stratified_holdout(labels, 0.3)[1], stratified_holdout(labels, 0.3)[1])
    assert np.array_equal(shuffled_holdout(50, 0.2)[1], shuffled_holdout(50, 0.2)[1])


def test_a_shuffled_split_keeps_the_first_part():
    kept, held_out = shuffled_holdout(10_000, 0.2)
    assert (len(kept), len(held_out)) == (8000, 2000)
    assert np.array_equal(np.sort(np.concatenate((kept, held_out))), np.arange(10_000))
    assert not np.array_equal(np.sort(kept), np.arange(8000))
