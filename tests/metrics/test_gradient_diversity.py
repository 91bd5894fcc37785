"""Gradient diversity of small vectors by hand (gptfl.md, section 10, check 5)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flgen.metrics.gradient_diversity import diversity_metrics, gradient_diversity, mean_pairwise_cosine


def measured(*updates: tuple[float, float]) -> dict[str, float]:
    g = torch.tensor(updates, dtype=torch.float64)
    norms = g.norm(dim=1, keepdim=True)
    units = torch.where(norms > 0, g / norms, torch.zeros_like(g))
    return diversity_metrics(
        float(g.square().sum()),
        square(g.sum(dim=0)),
        square(units.sum(dim=0)),
        clients=len(g),
        moved=int((norms > 0).sum()),
    )


def square(vector: Tensor) -> float:
    return float(vector.square().sum())


def test_three_vectors_by_hand() -> None:
    assert gradient_diversity(7.0, 5.0) == pytest.approx(1.4, abs=1e-9)
    metrics = measured((1, 0), (0, 2), (1, -1))
    assert metrics == {
        "diversity/gradient": pytest.approx(1.4, abs=1e-9),
        "diversity/times_cohort": pytest.approx(4.2, abs=1e-9),
        "diversity/cosine": pytest.approx(0.0, abs=1e-9),
    }


def test_equal_updates_have_the_least_diversity_and_orthogonal_ones_have_one() -> None:
    equal = measured((0.3, -2.0), (0.3, -2.0), (0.3, -2.0))
    assert equal["diversity/gradient"] == pytest.approx(1 / 3, abs=1e-9)
    assert equal["diversity/times_cohort"] == pytest.approx(1, abs=1e-9)
    assert equal["diversity/cosine"] == pytest.approx(1, abs=1e-9)
    orthogonal = measured((3, 0), (0, 0.1))
    assert orthogonal["diversity/gradient"] == pytest.approx(1, abs=1e-9)
    assert orthogonal["diversity/cosine"] == pytest.approx(0, abs=1e-9)


def test_the_cosine_is_the_mean_over_pairs() -> None:
    angles = [0.1, 1.3, 2.9, 4.0]
    pairs = [math.cos(a - b) for i, a in enumerate(angles) for b in angles[:i]]
    updates = [(length * math.cos(a), length * math.sin(a)) for length, a in zip((1, 5, 0.01, 2), angles, strict=True)]
    assert measured(*updates)["diversity/cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    assert mean_pairwise_cosine(0.0, 2) == -1


def test_updates_that_cancel_are_infinitely_diverse() -> None:
    assert measured((1, 2), (-1, -2)) == {
        "diversity/gradient": math.inf,
        "diversity/times_cohort": math.inf,
        "diversity/cosine": pytest.approx(-1),
    }


def test_what_is_not_defined_is_left_out() -> None:
    assert measured((0, 0), (0, 0)) == {}
    assert measured((2, 1)) == {"diversity/gradient": pytest.approx(1), "diversity/times_cohort": pytest.approx(1)}
    still = measured((2, 1), (0, 0), (2, 1))  # who stood still has no direction, but belongs to the cohort
    assert still["diversity/times_cohort"] == pytest.approx(3 / 2)
    assert still["diversity/cosine"] == pytest.approx(1)
