"""A mask stream is uniform mod R, repeatable from its key, and AES-256 in counter mode."""

from __future__ import annotations

import numpy as np
import pytest
from chi_square import p_value
from Crypto.Cipher import AES

from flgen.privacy.mask_stream import MaskStream
from flgen.wire import residues

KEYS = [bytes([n] * 32) for n in range(3)]
MODULI = [2**32, 2**24, 2**45, 2**62, 2**61 - 1, 97, 3 * 2**61]


def test_the_stream_is_aes_in_counter_mode() -> None:
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(2))
    expected = np.frombuffer(AES.new(KEYS[1], AES.MODE_ECB).encrypt(blocks), dtype="<u4")
    assert MaskStream(KEYS[1], 2**32).draw(8).tolist() == expected.tolist()


@pytest.mark.parametrize("modulus", MODULI)
def test_masks_are_uniform_and_repeatable(modulus: int) -> None:
    drawn = MaskStream(KEYS[0], modulus).draw(40_000)
    assert int(drawn.max()) < modulus
    assert p_value(drawn, modulus, bins=97) > 1e-3
    assert np.array_equal(MaskStream(KEYS[0], modulus).draw(40_000), drawn)
    assert not np.array_equal(MaskStream(KEYS[1], modulus).draw(40_000), drawn)


def test_a_remainder_instead_of_rejection_would_be_noticed() -> None:
    modulus = 3 * 2**61
    words = np.frombuffer(np.random.default_rng(0).bytes(320_000), dtype=np.uint64) & np.uint64(2**63 - 1)
    assert p_value(words % np.uint64(modulus), modulus, bins=97) < 1e-12


@pytest.mark.parametrize("modulus", MODULI)
def test_a_long_draw_is_short_draws_in_a_row(modulus: int) -> None:
    whole, parts = MaskStream(KEYS[2], modulus).draw(200_000), MaskStream(KEYS[2], modulus)
    assert np.array_equal(np.concatenate([parts.draw(count) for count in (0, 1, 100_000, 99_999)]), whole)


@pytest.mark.parametrize("modulus", MODULI)
def test_what_is_added_can_be_subtracted(modulus: int) -> None:
    x = MaskStream(KEYS[0], modulus).draw(20_000)
    y = x.copy()
    MaskStream(KEYS[1], modulus).add_to(y, +1)
    expected = x.astype(object) + MaskStream(KEYS[1], modulus).draw(20_000).astype(object)
    assert np.array_equal(y.astype(object), expected % modulus)
    MaskStream(KEYS[1], modulus).add_to(y, -1)
    assert y.dtype == residues.word_type(modulus)
    assert np.array_equal(y, x)
