"""The checksum notices what happens to bytes on their way, and is the same wherever they lie."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor

from flgen.wire.checksum import checksum


def noise(size: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def by_hand(head: bytes, body: bytes) -> int:
    whole = len(body) // 8 * 8
    words = [int.from_bytes(body[start : start + 8], "little", signed=True) for start in range(0, whole, 8)]
    total = sum((2 * number + 1) * word for number, word in enumerate(words)) % 2**64
    return zlib.crc32(head + total.to_bytes(8, "little") + body[whole:])


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 8 * 2**15, 8 * 2**15 + 8, 700_003])
def test_it_is_what_the_formula_says(size: int) -> None:
    body = noise(size)
    assert checksum(b"head", body) == by_hand(b"head", bytes(body.tolist()))


def test_where_in_a_message_a_body_starts_does_not_matter() -> None:
    body = noise(1000)
    for place in range(9):
        message = torch.cat([noise(place, 1), body])
        assert checksum(b"", message[place:]) == checksum(b"", body)


@pytest.mark.parametrize("size", [3, 40, 803])
def test_every_flipped_bit_is_noticed(size: int) -> None:
    body = noise(size)
    right = checksum(b"head", body)
    for place in range(8 * size):
        damaged = body.clone()
        damaged[place // 8] ^= 1 << place % 8
        assert checksum(b"head", damaged) != right


def test_words_that_change_places_and_another_head_are_noticed() -> None:
    body = noise(80)
    words = body.view(10, 8)
    right = checksum(b"head", body)
    for other in range(1, 10):
        swapped = words.clone()
        swapped[[0, other]] = words[[other, 0]]
        assert checksum(b"head", swapped.view(-1)) != right
    assert checksum(b"heap", body) != right


def test_cut_zeros_are_noticed() -> None:
    zeros = torch.zeros(64, dtype=torch.uint8)
    heads = [length.to_bytes(8, "little") for length in (64, 56)]  # as a header has the length of its body
    assert checksum(heads[0], zeros) != checksum(heads[1], zeros[:56])
