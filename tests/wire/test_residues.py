"""Sums and differences mod R are those of the integers, for any R up to 2^63."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flgen.wire import residues

MODULI = [2, 97, 2**16, 2**32, 2**33, 2**61 - 1, 2**62, 2**63 - 25, 2**63]


@given(st.sampled_from(MODULI), st.data())
def test_sums_and_differences(modulus: int, data: st.DataObject) -> None:
    numbers = st.lists(st.integers(0, modulus - 1), min_size=3, max_size=3)
    a, b = data.draw(numbers), data.draw(numbers)
    total = residues.as_residues(np.array(a, dtype=np.uint64), modulus)
    other = residues.as_residues(np.array(b, dtype=np.uint64), modulus)
    residues.add(total, other, modulus)
    assert total.tolist() == [(x + y) % modulus for x, y in zip(a, b, strict=True)]
    residues.subtract(total, other, modulus)
    residues.subtract(total, other, modulus)
    assert total.tolist() == [(x - y) % modulus for x, y in zip(a, b, strict=True)]


def test_powers_of_two_up_to_32_bits_take_four_bytes() -> None:
    assert [residues.zeros(1, modulus).itemsize for modulus in (2**16, 2**32, 2**33, 97, 2**61 - 1)] == [4, 4, 8, 8, 8]


@pytest.mark.parametrize("modulus", [0, 1, -5, 2**63 + 1, 2**64])
def test_no_modulus(modulus: int) -> None:
    with pytest.raises(ValueError, match="2 to 2\\^63 expected"):
        residues.zeros(1, modulus)


@pytest.mark.parametrize("modulus", MODULI)
def test_words_that_travel_are_the_residues_again(modulus: int) -> None:
    values = residues.as_residues(np.array([0, 1, modulus // 2, modulus - 1], dtype=np.uint64), modulus)
    words = residues.as_words(values)
    assert words.element_size() == values.itemsize
    assert residues.from_words(words.clone(), modulus).tolist() == values.tolist()


@pytest.mark.parametrize("modulus", [2**16, 2**32, 2**33, 2**62, 2**63])
def test_sums_of_words_that_overflowed_are_right_mod_a_power_of_two(modulus: int) -> None:
    values = residues.as_residues(np.array([modulus - 1, modulus // 2, 5], dtype=np.uint64), modulus)
    words = residues.as_words(values)
    total = words.clone()
    for _ in range(6):
        total += words
    assert residues.from_words(total, modulus).tolist() == [7 * int(x) % modulus for x in values]


def test_numbers_outside_the_ring_are_refused() -> None:
    for values in (np.array([5], dtype=np.uint64), np.array([-1])):
        with pytest.raises(ValueError, match="residues mod 5 expected"):
            residues.as_residues(values, 5)
