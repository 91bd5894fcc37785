"""Entropy-coded entries: what arrives is what was sent, in the bits that its frequencies allow (PRISM, check 9)."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flgen.metrics.drift import binary_entropy, cross_entropy_bits
from flgen.wire.codecs import Coded, WireError, coded, decode_payload, dense, encode_payload
from flgen.wire.entropy_coding import MOST_CODED, decode_runs, encode_runs, probability_levels

PACKED, TOGETHER, BY_CONTEXT = 0, 1, 2
START = 6  # bytes of a body before its code

quick = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def body_of(symbols: Tensor, contexts: Tensor | None = None, alphabet: int = 2) -> Tensor:
    entry = coded(symbols, contexts, alphabet)
    return entry.codec.encode(entry.tensor)


def decoded(body: Sequence[int] | bytes | Tensor, like: Tensor, contexts: Tensor | None = None) -> Tensor:
    octets = body if isinstance(body, Tensor) else torch.tensor(list(body), dtype=torch.uint8)
    return Coded.decode(octets, tuple(like.shape), like.dtype, contexts)[""]


def packed_bytes(symbols: Tensor, alphabet: int) -> int:
    return math.ceil(symbols.numel() * (alphabet - 1).bit_length() / 8)


@st.composite
def entries(draw: Any) -> tuple[Tensor, Tensor | None, int]:
    """Symbols of any shape, alphabet and skew, and contexts that say much, little or nothing about them."""
    shape = draw(st.one_of(st.lists(st.integers(0, 12), max_size=3), st.lists(st.integers(500, 3000), max_size=1)))
    alphabet = draw(st.sampled_from([2, 2, 3, 5, 11, 16, 17, 256]))
    draws = stream(draw(st.integers(0, 2**32)))
    contexts = torch.randint(0, draw(st.sampled_from([1, 2, 32, 256])), shape, generator=draws, dtype=torch.uint8)
    spread = torch.rand(shape, generator=draws) ** draw(st.sampled_from([1, 8, 100]))
    informed = draw(st.sampled_from([0.0, 0.5, 1.0])) * contexts / 256
    symbols = ((spread + informed).clamp(max=1) * (alphabet - 1)).round().to(torch.uint8)
    if alphabet == 2 and draw(st.booleans()):
        symbols = symbols.bool()
    return symbols, draw(st.sampled_from([None, contexts])), alphabet


@quick
@given(entries())
def test_symbols_arrive_as_they_were_and_never_cost_more_than_packed(sent: tuple[Tensor, Tensor | None, int]) -> None:
    symbols, contexts, alphabet = sent
    body = body_of(symbols, contexts, alphabet)
    assert body.numel() <= packed_bytes(symbols, alphabet) + START
    arrived = decoded(body, symbols, contexts)
    assert arrived.dtype == symbols.dtype
    assert torch.equal(arrived, symbols)


@pytest.mark.parametrize(
    ("symbols", "packed"),
    [([], b""), ([0], b"\0"), ([1], b"\x80"), ([1, 0, 1, 1, 0, 0, 0, 1, 1, 1], b"\xb1\xc0")],  # the last: check 8
)
def test_a_few_bits_are_packed_most_significant_first(symbols: list[int], packed: bytes) -> None:
    mask = torch.tensor(symbols, dtype=torch.bool)
    head = struct.pack("<BBI", PACKED, 1, zlib.crc32(bytes(symbols)))
    assert bytes(body_of(mask, mask.byte()).tolist()) == head + packed


def test_counts_are_packed_in_planes_of_bits() -> None:
    counts = torch.tensor([5, 3, 0, 10, 9, 1, 2, 8], dtype=torch.uint8)
    body = body_of(counts, alphabet=11)
    assert body[START:].tolist() == [0b11001100, 0b01010010, 0b10000000, 0b00011001]
    assert torch.equal(decoded(body, counts), counts)


def test_a_mask_of_the_published_generator_takes_what_the_shared_probabilities_allow() -> None:
    d = 3_543_616  # check 1
    theta = torch.sigmoid(torch.randn(d, generator=stream(0)))
    mask = torch.rand(d, generator=stream(1)) < theta
    levels = probability_levels(theta)
    message = encode_payload({"mask": coded(mask, levels)})
    assert torch.equal(decode_payload(message, {"mask": levels})["mask"], mask)
    assert 8 * message.numel() == pytest.approx(cross_entropy_bits(theta, mask), rel=0.01)
    assert 8 * message.numel() == pytest.approx(float(binary_entropy(theta).sum()), rel=0.01)
    assert 0.86 < 8 * message.numel() / d < 0.875


def test_without_contexts_a_mask_takes_the_entropy_of_its_density() -> None:
    mask = torch.rand(200_000, generator=stream()) < 0.1
    bound = 200_000 * float(binary_entropy(mask.double().mean())) / 8
    assert bound < body_of(mask).numel() <= bound + START + 12  # two roots, and what a code ends with


@pytest.mark.parametrize(("skew", "most"), [(0, 3.48), (2, 2.9)])
def test_counts_among_ten_clients_take_less_than_four_bits(skew: float, most: float) -> None:
    shape = (100_000,)
    # A uniform probability makes all counts of 0 to 10 equally likely: log2(11) = 3.459 bits.
    theta = torch.rand(shape, generator=stream())
    if skew:
        theta = torch.sigmoid(torch.randn(shape, generator=stream()) - skew)
    counts = (torch.rand(10, *shape, generator=stream(1)) < theta).sum(0).to(torch.uint8)
    per_count = 8 * body_of(counts, alphabet=11).numel() / counts.numel()
    assert per_count < most
    given = probability_levels(theta)
    assert 8 * body_of(counts, given, alphabet=11).numel() / counts.numel() < per_count - 0.4


def test_frequencies_of_many_contexts_do_not_eat_what_contexts_gain() -> None:
    """5,000 counts of 11 kinds in 32 contexts: 352 frequencies take less than a tenth."""
    theta = torch.sigmoid(torch.randn(5_000, generator=stream()))
    counts = (torch.rand(10, 5_000, generator=stream(1)) < theta).sum(0).to(torch.uint8)
    levels = probability_levels(theta)
    with_contexts, without = body_of(counts, levels, 11).numel(), body_of(counts, None, 11).numel()
    entropy = 0.0
    for level in levels.unique():
        shares = torch.bincount(counts[levels == level].int()).double()
        entropy += float(torch.special.entr(shares / shares.sum()).sum() * shares.sum()) / math.log(2) / 8
    assert entropy < with_contexts < entropy + 180
    assert with_contexts < 0.9 * without


def test_contexts_that_say_nothing_cost_nothing() -> None:
    counts = torch.randint(0, 11, (3_000,), generator=stream(), dtype=torch.uint8)
    noise = torch.randint(0, 256, (3_000,), generator=stream(1), dtype=torch.uint8)
    assert torch.equal(body_of(counts, noise, 11), body_of(counts, None, 11))
    assert torch.equal(decoded(body_of(counts, noise, 11), counts), counts)


def skewed() -> tuple[Tensor, Tensor]:
    """A mask, and contexts that say much about it."""
    contexts = torch.randint(0, 5, (40, 25), generator=stream(), dtype=torch.uint8)
    return torch.rand(40, 25, generator=stream(1)) < contexts / 4 * 0.9 + 0.05, contexts


def test_contexts_that_differ_at_the_two_ends_are_found_out() -> None:
    mask, contexts = skewed()
    body = body_of(mask, contexts)
    assert body[0] == BY_CONTEXT
    for place in range(0, 1000, 7):
        other = contexts.clone().view(-1)
        other[place] += 1 + place % 3
        with pytest.raises(WireError, match="other contexts"):
            decoded(body, mask, other.view(40, 25))


def test_contexts_that_are_missing_or_of_another_shape_are_named() -> None:
    mask, contexts = skewed()
    message = encode_payload({"mask": coded(mask, contexts), "t": dense(torch.ones(1))})
    assert torch.equal(decode_payload(message, {"mask": contexts, "another": contexts})["mask"], mask)
    for given_, said in (
        (None, "coded given contexts: decode it with the same ones"),
        ({"t": contexts}, "coded given contexts: decode it with the same ones"),
        ({"mask": contexts.T}, r"coded given other contexts than torch.uint8 \(25, 40\)"),
        ({"mask": contexts.int()}, "coded given other contexts than torch.int32"),
        ({"mask": contexts.zero_()}, "other contexts"),
    ):
        with pytest.raises(WireError, match=said):
            decode_payload(message, given_)


def test_memory_layout_does_not_matter() -> None:
    mask, contexts = skewed()
    body = body_of(mask.T, contexts.T)
    assert torch.equal(body, body_of(mask.T.contiguous(), contexts.T.contiguous()))
    assert torch.equal(decoded(body, mask.T, contexts.T), mask.T)


@pytest.mark.parametrize(
    ("symbols", "contexts", "alphabet", "said"),
    [
        (torch.ones(3), None, 2, "bool or uint8 symbols"),
        (torch.ones(3).bool(), None, 1, "got 1 kinds"),
        (torch.ones(3).bool(), None, 257, "got 257 kinds"),
        (torch.ones(3).bool(), None, 3, r"3 kinds of symbols expected, got torch.bool up to 1"),
        (torch.tensor([11], dtype=torch.uint8), None, 11, "11 kinds of symbols expected, got torch.uint8 up to 11"),
        (torch.ones(3).bool(), torch.ones(4).byte(), 2, r"contexts of shape \(3,\) expected, got torch.uint8 \(4,\)"),
        (torch.ones(3).bool(), torch.ones(3), 2, "uint8 contexts"),
    ],
)
def test_what_does_not_fit_together_is_not_sent(
    symbols: Tensor, contexts: Tensor | None, alphabet: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        coded(symbols, contexts, alphabet)


def decodes_or_says_why(body: bytes, like: Tensor, contexts: Tensor | None) -> Tensor | None:
    """Return the right symbols, or nothing after one line of refusal."""
    try:
        return decoded(body, like, contexts)
    except WireError as error:
        if "\n" in str(error):
            raise
        return None


SAMPLES = [
    (torch.arange(300) % 7 == 0, None, 2),
    (torch.tensor([True] * 5_000 + [False]), None, 2),
    (*skewed(), 2),
    (torch.arange(40, dtype=torch.uint8) % 11, None, 11),
    (torch.arange(900).div(100, rounding_mode="floor").byte(), torch.arange(900).div(50).byte(), 11),
]


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_no_damage_is_taken_for_symbols(sample: int) -> None:
    symbols, contexts, alphabet = SAMPLES[sample]
    body = bytes(body_of(symbols, contexts, alphabet).tolist())
    damaged = [body[:length] for length in range(len(body))]
    damaged += [body + extra for extra in (b"\0", b"\0" * 4, b"\1\2\3\4", b"\xff" * 8)]
    for place in range(len(body)):
        damaged += [body[:place] + bytes([body[place] ^ 1 << bit]) + body[place + 1 :] for bit in range(8)]
    for changed in damaged:
        arrived = decodes_or_says_why(changed, symbols, contexts)
        assert arrived is None or torch.equal(arrived, symbols)


@quick
@given(st.sampled_from([PACKED, TOGETHER, BY_CONTEXT, 3]), st.integers(0, 255), st.binary(max_size=60), st.booleans())
def test_noise_decodes_into_symbols_below_the_alphabet_or_says_why(
    kind: int, largest: int, noise: bytes, is_mask: bool
) -> None:
    like, contexts = torch.zeros(30, dtype=torch.bool if is_mask else torch.uint8), torch.arange(30).byte() % 4
    checksum = zlib.crc32(decode_or_zeros(noise, kind, largest + 1))
    arrived = decodes_or_says_why(struct.pack("<BBI", kind, largest, checksum) + noise, like, contexts)
    assert arrived is None or int(arrived.max()) <= largest


def decode_or_zeros(noise: bytes, kind: int, alphabet: int) -> Any:
    """What noise is the code of, so that some of it has a checksum that fits."""
    try:
        return decode_runs(noise, [30], alphabet) if kind == TOGETHER and alphabet > 1 else np.zeros(30, np.uint8)
    except WireError:
        return np.zeros(30, np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8])
def test_symbols_of_another_type_do_not_exist(dtype: torch.dtype) -> None:
    body = body_of(torch.ones(9).bool())
    with pytest.raises(WireError, match=f"9 {dtype} symbols"):
        decoded(body, torch.ones(9).to(dtype))


def test_a_few_bytes_cannot_ask_for_much() -> None:
    body = body_of(torch.ones(10_000).bool())
    assert body.numel() <= START + 8
    for shape in ((MOST_CODED + 1,), (2**24, 2**24)):
        with pytest.raises(WireError, match="cannot be the code of"):
            Coded.decode(body, shape, torch.bool)
    packed = body_of(torch.ones(5).bool())
    with pytest.raises(WireError, match="bits need"):
        Coded.decode(packed, (2**47,), torch.bool)


@quick
@given(st.lists(st.integers(0, 300), max_size=6), st.integers(2, 12), st.integers(0, 2**32))
def test_runs_come_back_from_their_code(sizes: list[int], alphabet: int, seed: int) -> None:
    symbols = torch.randint(0, alphabet, (sum(sizes),), generator=stream(seed), dtype=torch.uint8).numpy()
    code = encode_runs(symbols, sizes, alphabet)
    assert decode_runs(code, sizes, alphabet).tolist() == symbols.tolist()
    without_empty = [size for size in sizes if size]
    assert encode_runs(symbols, without_empty, alphabet) == code


def test_levels_are_equally_wide_in_logit() -> None:
    logits = torch.tensor([-math.inf, -9, -4.7, -4.6 + 0.28, -4.6 + 0.29, -0.01, 0, 0.28, 0.29, 4.3, 4.32, 9, math.inf])
    theta = torch.sigmoid(logits.double())
    assert probability_levels(theta).tolist() == [0, 0, 0, 0, 1, 15, 16, 16, 17, 30, 31, 31, 31]
    assert probability_levels(theta, 2).tolist() == [0] * 6 + [1] * 7
    assert probability_levels(theta, 1).tolist() == [0] * 13
    assert probability_levels(theta.view(13, 1), 256).max() == 255


def test_every_probability_that_ten_clients_can_make_has_a_level_of_its_own() -> None:
    theta = 0.01 + 0.98 * torch.arange(11) / 10  # check 3
    levels = probability_levels(theta)
    assert levels.dtype == torch.uint8
    assert len(levels.unique()) == 11
    assert torch.equal(levels, probability_levels(theta.double()))


@pytest.mark.parametrize("theta", [[0.5, math.nan], [-0.1], [1.1]])
def test_what_is_no_probability_has_no_level(theta: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        probability_levels(torch.tensor(theta))
    for levels in (0, 257):
        with pytest.raises(ValueError, match=f"1 to 256 levels expected, got {levels}"):
            probability_levels(torch.ones(1), levels)
