"""Values of DisPFL's specification, section 13, check 12, and what the distances must be for any masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.metrics import mask_distance
from flgen.metrics.mask_distance import (
    aligned_similarity,
    expected_hamming,
    hamming_distances,
    independent_distances,
    label_cosine,
    spearman,
)

# The layers of ResNet-18 (10 classes) that ERK leaves partly dense at density 0.5, as (a_l, n_l).
RESNET18 = [(424_498, 589_824)] * 3 + [(634_289, 1_179_648)] + [(844_080, 2_359_296)] * 3


def test_independent_masks_of_resnet18_differ_in_41_percent_of_all_weights() -> None:
    active, sizes = zip(*RESNET18, strict=True)
    bits = expected_hamming(active, sizes)
    assert round(bits) == 4_552_958
    assert bits / 11_173_962 == pytest.approx(0.407, abs=5e-4)


def test_the_published_scaling_of_the_worked_example() -> None:
    D = torch.tensor([[0, 2, 6, 10], [2, 0, 5, 8], [6, 5, 0, 9], [10, 8, 9, 0]])
    S = [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.75, 1, 1, 0], [0, 1, 0.5, 1]]
    assert aligned_similarity(D).tolist() == S


def test_rows_without_a_nearest_client_are_ones() -> None:
    D = torch.tensor([[0, 4, 4], [4, 0, 5], [4, 5, 0]])
    assert aligned_similarity(D).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 1]]
    assert aligned_similarity(torch.tensor([[0, 3], [3, 0]])).tolist() == [[1, 1], [1, 1]]
    assert aligned_similarity(torch.zeros(1, 1)).tolist() == [[1]]


def test_cosine_of_label_counts() -> None:
    counts = torch.tensor([[10, 0, 0], [6, 8, 0], [0, 0, 7], [0, 0, 0], [0, 0, 0]])
    expected = [
        [1, 0.6, 0, 0, 0],
        [0.6, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    torch.testing.assert_close(label_cosine(counts), torch.tensor(expected, dtype=torch.float64), atol=1e-15, rtol=0)


def test_distances_count_the_positions_that_differ() -> None:
    masks = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 0, 0], [0, 1, 0, 0, 1]]).bool()
    distances = hamming_distances(masks)
    assert distances.dtype == torch.int64
    assert distances.tolist() == [[0, 2, 5], [2, 0, 3], [5, 3, 0]]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(0, 65), st.integers(4, 200), st.integers(0, 2**31))
def test_distances_are_those_of_every_pair_by_itself(clients: int, positions: int, chunk: int, seed: int) -> None:
    masks = torch.rand(clients, positions, generator=torch.Generator().manual_seed(seed)) < 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_distance, "_CHUNK_BYTES", chunk)  # several chunks, the last one shorter
        distances = hamming_distances(masks)
    assert torch.equal(distances, (masks[:, None] ^ masks[None, :]).sum(2))


def test_distances_beyond_the_integers_of_float32_are_exact() -> None:
    positions = 2**24 + 3  # float32 cannot tell this from 2^24 + 2
    masks = torch.stack([torch.ones(positions, dtype=torch.bool), torch.zeros(positions, dtype=torch.bool)])
    masks[1, 5] = True
    assert hamming_distances(masks).tolist() == [[0, 2**24 + 2], [2**24 + 2, 0]]


def test_a_chunk_is_small_whatever_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    as_float = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda part: sizes.append(part.numel()) or as_float(part))
    hamming_distances(torch.zeros(1, 1, dtype=torch.bool).expand(100, 1_000_000))
    assert sum(sizes) == 100_000_000
    assert 4 * max(sizes) <= 32 * 2**20


def test_independent_distances_of_clients_with_capacities_of_their_own() -> None:
    # Densities 0.5 and 0.2 in layer one, 0.5 and 1 in layer two.
    active, sizes = torch.tensor([[5, 10], [2, 20]]), [10, 20]
    between = 10 * (0.5 * 0.8 + 0.2 * 0.5) + 20 * (0.5 * 0.0 + 1.0 * 0.5)
    expected = [[expected_hamming([5, 10], sizes), between], [between, expected_hamming([2, 20], sizes)]]
    assert between == 15
    torch.testing.assert_close(independent_distances(active, sizes), torch.tensor(expected, dtype=torch.float64))


def test_independent_distances_are_the_mean_of_sampled_ones() -> None:
    draws = torch.Generator().manual_seed(0)
    masks = torch.stack([torch.rand(200_000, generator=draws) < density for density in (0.2, 0.5, 0.9)])
    expected = independent_distances(masks.sum(1, keepdim=True), [200_000])
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    difference = (hamming_distances(masks) - expected)[off_diagonal].abs()
    assert float(difference.max()) < 4 * math.sqrt(200_000 / 4)


def matrix(above: list[float]) -> torch.Tensor:
    """A symmetric 3x3 matrix with these values at (0, 1), (0, 2), (1, 2)."""
    a, b, c = above
    return torch.tensor([[0, a, b], [a, 0, c], [b, c, 0]], dtype=torch.float64)


def test_spearman_is_one_if_the_likest_clients_have_the_nearest_masks() -> None:
    assert spearman(matrix([0.9, 0.5, 0.1]), matrix([3, 70, 71])) == pytest.approx(1)
    assert spearman(matrix([0.9, 0.5, 0.1]), matrix([71, 70, 3])) == pytest.approx(-1)
    assert spearman(matrix([0.9, 0.5, 0.1]), matrix([3, 71, 70])) == pytest.approx(0.5)


def test_spearman_takes_cosines_that_differ_by_rounding_for_ties() -> None:
    # With ties the ranks are 2.5, 2.5, 1 against 3, 2, 1: 1.5 / sqrt(1.5 * 2).
    rounded = matrix([0.7, 0.7 + 2e-16, 0.1])
    assert spearman(rounded, matrix([3, 4, 5])) == pytest.approx(math.sqrt(0.75))
    assert spearman(rounded, matrix([3, 4, 5])) == spearman(rounded, matrix([4, 3, 5]))


@pytest.mark.parametrize(("alike", "distances"), [([0.5, 0.5, 0.5], [1, 2, 3]), ([0.1, 0.2, 0.3], [7, 7, 7])])
def test_spearman_does_not_exist_where_all_pairs_are_the_same(alike: list[float], distances: list[float]) -> None:
    assert math.isnan(spearman(matrix(alike), matrix(distances)))


def test_spearman_does_not_exist_for_two_clients() -> None:
    assert math.isnan(spearman(torch.ones(2, 2), torch.ones(2, 2)))
