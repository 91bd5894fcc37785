"""Any t of n shares rebuild a secret; fewer are consistent with every secret."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flgen.privacy.shamir import PRIME, SHARE_BYTES, evaluate, lagrange_weights, rebuild, split


def test_check_7_the_worked_example_mod_97() -> None:
    shares = {z: evaluate([42, 13], z, 97) for z in (1, 2, 3)}
    assert shares == {1: 55, 2: 68, 3: 81}
    assert lagrange_weights([1, 3], 97) == [50, 48]
    for pair in combinations(shares, 2):
        assert rebuild({z: shares[z] for z in pair}, 2, 97) == 42


def test_check_7_one_share_of_two_is_consistent_with_every_secret() -> None:
    # Whatever the secret were, there is a line through it and the one share that is known.
    secrets = {rebuild({1: 55, 2: other}, 2, 97) for other in range(97)}
    assert secrets == set(range(97))


@given(st.data())
def test_any_threshold_of_the_shares_rebuild_the_secret(data: st.DataObject) -> None:
    holders = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, holders))
    secret = data.draw(st.integers(0, 2**256 - 1))
    shares = split(secret, threshold, range(1, holders + 1))
    kept = data.draw(st.permutations(range(1, holders + 1)))[: data.draw(st.integers(threshold, holders))]
    assert rebuild({z: shares[z] for z in kept}, threshold) == secret
    assert all(0 <= share < 2 ** (8 * SHARE_BYTES) for share in shares.values())


def test_shares_of_one_secret_differ_from_time_to_time() -> None:
    assert split(5, 2, [1, 2]) != split(5, 2, [1, 2])


def test_fewer_shares_than_the_threshold_rebuild_another_number_or_are_refused() -> None:
    shares = split(1234, 3, [1, 2, 3, 4])
    assert rebuild({1: shares[1], 4: shares[4]}, 2) != 1234
    with pytest.raises(ValueError, match="2 shares, 3 are needed"):
        rebuild({1: shares[1], 4: shares[4]}, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(PRIME, 1, [1]), (-1, 1, [1]), (5, 1, [0]), (5, 2, [1, 1]), (5, 3, [1, 2]), (5, 0, [1, 2])],
)
def test_impossible_shares_are_refused(secret: int, threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected|threshold"):
        split(secret, threshold, points)
