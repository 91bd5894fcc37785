"""F1 of a whole pass: by hand, and as scikit-learn has it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from flgen.metrics.classification import f1_scores


def scores(predictions: list[int], labels: list[int]) -> dict[str, float]:
    return f1_scores(torch.tensor(predictions), torch.tensor(labels))


def test_by_hand():
    # Class 0: TP 1, FN 1: 2/3. Class 1: TP 1, FP 1, FN 1: 1/2. Class 2: FP 1: 0, of no sample.
    found = scores([0, 1, 1, 2], [0, 1, 0, 1])
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-7)
    assert found["f1_weighted"] == pytest.approx((2 * 2 / 3 + 2 * 1 / 2) / 4, abs=1e-7)


def test_a_class_that_nobody_names_does_not_count():
    assert scores([0, 5, 5], [0, 5, 5]) == {"f1_macro": 1.0, "f1_weighted": 1.0}


def test_of_one_class_alone():
    assert scores([0, 0], [0, 0]) == {"f1_macro": 1.0, "f1_weighted": 1.0}
    assert scores([1], [0]) == {"f1_macro": 0.0, "f1_weighted": 0.0}


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_it_is_scikit_learns(pairs: list[tuple[int, int]]):
    predictions, labels = (list(side) for side in zip(*pairs, strict=True))
    found = scores(predictions, labels)
    for average in ("macro", "weighted"):
        assert found[f"f1_{average}"] == pytest.approx(
            f1_score(labels, predictions, average=average, zero_division=0), abs=1e-6
        )
