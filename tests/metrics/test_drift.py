"""Values of PRISM's specification, section 10, checks 4 and 9."""

from __future__ import annotations

import math

import pytest
import torch

from flgen.metrics.drift import (
    binary_entropy,
    cosine_distance,
    cross_entropy_bits,
    expected_hamming,
    sampled_hamming,
)

A = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])
B = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1])


def standard_normal_grid() -> tuple[torch.Tensor, torch.Tensor]:
    """Return points and weights of a quadrature over N(0, 1)."""
    points = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = torch.exp(-points.square() / 2)
    return points, density / density.sum()


def test_hamming_distance_counts_the_positions_that_differ():
    assert sampled_hamming(A, B) == 0.375
    assert sampled_hamming(A, A) == 0.0
    assert sampled_hamming(A, 1 - A) == 1.0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_may_be_of_any_type(dtype):
    assert sampled_hamming(A.to(dtype), B.to(dtype)) == 0.375
    assert cosine_distance(A.to(dtype), B.to(dtype)) == pytest.approx(0.3291797, abs=1e-7)


def test_cosine_distance_is_one_minus_the_cosine():
    assert cosine_distance(A, B) == pytest.approx(0.3291797, abs=1e-7)
    assert cosine_distance(A, A) == pytest.approx(0.0, abs=1e-15)


def test_cosine_distance_of_an_empty_mask_is_defined():
    empty = torch.zeros(8)
    assert cosine_distance(empty, empty) == 0.0
    assert cosine_distance(empty, A) == 1.0
    assert cosine_distance(A, empty) == 1.0


def test_expected_hamming_of_given_probabilities():
    p = torch.tensor([0.5, 0.75, 0.25, 0.9], dtype=torch.float64)
    q = torch.tensor([0.5, 0.99, 0.01, 0.745], dtype=torch.float64)
    assert expected_hamming(p, q) == pytest.approx(0.3285, rel=1e-12)


def test_expected_hamming_does_not_vanish_for_equal_probabilities():
    floor = torch.full((5,), 0.01, dtype=torch.float64)
    assert expected_hamming(floor, floor) == pytest.approx(0.0198, rel=1e-12)
    scores, weights = standard_normal_grid()
    p = torch.sigmoid(scores)
    assert expected_hamming(p, p, weights) == pytest.approx(0.413242, abs=5e-7)
    assert expected_hamming(p, 0.01 + 0.98 * p, weights) == pytest.approx(0.414977, abs=5e-7)


def test_expected_hamming_is_the_mean_of_the_sampled_one():
    draws = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 200_000, generator=draws)
    sampled = sampled_hamming(torch.bernoulli(p, generator=draws), torch.bernoulli(q, generator=draws))
    assert sampled == pytest.approx(expected_hamming(p, q), abs=4 * 0.5 / math.sqrt(200_000))


def test_weights_count_positions_as_if_they_were_repeated():
    weights = torch.tensor([1, 2, 2, 1, 3, 1, 2, 1], dtype=torch.uint8)
    repeat = weights.long()
    a, b = A.repeat_interleave(repeat), B.repeat_interleave(repeat)
    assert sampled_hamming(A, B, weights) == sampled_hamming(a, b) == 4 / 13
    assert cosine_distance(A, B, weights) == pytest.approx(cosine_distance(a, b), rel=1e-12)
    p, q = torch.rand(2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    repeated = expected_hamming(p.repeat_interleave(repeat), q.repeat_interleave(repeat))
    assert expected_hamming(p, q, weights) == pytest.approx(repeated, rel=1e-12)


def test_weights_of_bytes_do_not_overflow():
    ones, weights = torch.ones(1000), torch.full((1000,), 2, dtype=torch.uint8)
    assert sampled_hamming(ones, torch.zeros(1000), weights) == 1.0
    assert cosine_distance(ones, ones, weights) == pytest.approx(0.0, abs=1e-15)


def test_binary_entropy_in_bits():
    p = torch.tensor([0.5, 0.42, 0.25, 0.1, 0.01], dtype=torch.float64)
    expected = torch.tensor([1, 0.981454, 0.811278, 0.468996, 0.080793], dtype=torch.float64)
    torch.testing.assert_close(binary_entropy(p), expected, atol=5e-7, rtol=0)
    assert binary_entropy(torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_expected_cost_of_coding_a_mask_with_its_own_probabilities():
    theta = torch.tensor([0.9, 0.9, 0.1, 0.5], dtype=torch.float64)
    assert float(binary_entropy(theta).sum()) == pytest.approx(2.406987, abs=5e-7)
    scores, weights = standard_normal_grid()
    assert float((weights * binary_entropy(torch.sigmoid(scores))).sum()) == pytest.approx(0.864807, abs=5e-7)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_a_mask_costs_the_logarithms_of_its_probabilities(dtype):
    theta, mask = torch.tensor([0.9, 0.9, 0.1, 0.5], dtype=torch.float64), torch.tensor([1, 0, 0, 1]).to(dtype)
    assert cross_entropy_bits(theta, mask) == pytest.approx(0.152003 + 3.321928 + 0.152003 + 1, abs=1e-6)
    assert cross_entropy_bits(theta, mask) == pytest.approx(4.625934, abs=5e-7)


def test_what_is_certain_costs_nothing_and_what_is_impossible_everything():
    certain = torch.tensor([0.0, 1.0])
    assert cross_entropy_bits(certain, certain) == 0
    assert cross_entropy_bits(certain, 1 - certain) == math.inf


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(8,\), \(4,\)"):
        sampled_hamming(A, B[:4])
    with pytest.raises(ValueError, match="at least one element"):
        expected_hamming(torch.ones(0), torch.ones(0))
    with pytest.raises(ValueError, match=r"\(4,\), \(3,\)"):
        cross_entropy_bits(torch.ones(4), torch.ones(3))
