"""Encode and decode: what arrives is what was sent, in the bytes that were promised, whatever else arrives."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flgen.wire.checksum import checksum
from flgen.wire.codecs import (
    MAGIC,
    VERSION,
    Bits,
    Dense,
    WireError,
    bits,
    count_scalars,
    decode_payload,
    dense,
    encode_payload,
    sent_by,
    sparse,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS)
HEADER_BYTES = 20
MOST_INDEXED = 2**26

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
names = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit, NaN and -0.0 included."""
    return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)


def bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@st.composite
def tensors(draw: Any) -> Tensor:
    """Any element type, any shape (empty ones and scalars too), any bit pattern."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    raw = draw(st.binary(min_size=math.prod(shape) * dtype.itemsize, max_size=math.prod(shape) * dtype.itemsize))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return ((flat & 1).bool() if dtype == torch.bool else flat.view(dtype)).view(shape)


def message_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_ten_bits_are_packed_most_significant_first() -> None:
    mask = torch.tensor([int(bit) for bit in "1011000111"])
    message = encode_payload({"mask": bits(mask)})
    assert message[-2:].tolist() == [0xB1, 0xC0]
    decoded = decode_payload(message)["mask"]
    assert decoded.dtype == torch.bool
    assert torch.equal(decoded, mask.bool())


def test_a_mask_costs_an_eighth_of_its_elements_and_a_short_header() -> None:
    d = 3_543_616  # prism.md, check 1
    message = encode_payload({"mask": bits(torch.ones(d))})
    assert message.numel() == 442_952 + HEADER_BYTES + 8 + len("mask")
    assert message.numel() - 442_952 <= 64


def test_dense_costs_its_elements_and_a_short_header() -> None:
    weights = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    header = HEADER_BYTES + 2 * 8 + len("w")
    assert encode_payload({"w": dense(weights)}).numel() == header + 21 * 4
    assert encode_payload({"w": dense(weights, torch.float16)}).numel() == header + 21 * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrowed_floats_arrive_as_the_nearest_narrow_ones(dtype: torch.dtype) -> None:
    weights = torch.randn(100, generator=torch.Generator().manual_seed(0))
    decoded = decode_payload(encode_payload({"w": dense(weights, dtype)}))["w"]
    assert same_bits(decoded, weights.to(dtype))
    error = ((decoded.float() - weights) / weights).abs().max()
    assert 0 < error <= torch.finfo(dtype).eps / 2


@quick
@given(tensors())
def test_dense_returns_the_same_bits(tensor: Tensor) -> None:
    assert same_bits(decode_payload(encode_payload({"x": dense(tensor)}))["x"], tensor)


@quick
@given(st.lists(st.booleans(), max_size=70), st.sampled_from(DTYPES))
def test_bits_return_the_same_bits_for_any_length(ones: list[bool], dtype: torch.dtype) -> None:
    message = encode_payload({"m": bits(torch.tensor(ones, dtype=dtype))})
    assert message.numel() == HEADER_BYTES + 8 + 1 + math.ceil(len(ones) / 8)
    assert decode_payload(message)["m"].tolist() == ones


@quick
@given(st.dictionaries(names, st.tuples(tensors(), st.booleans()), max_size=5))
def test_entries_arrive_by_name_and_in_order(entries: dict[str, tuple[Tensor, bool]]) -> None:
    payload = {name: bits(tensor != 0) if as_bits else dense(tensor) for name, (tensor, as_bits) in entries.items()}
    decoded = decode_payload(encode_payload(payload))
    assert list(decoded) == list(entries)
    for name, (tensor, as_bits) in entries.items():
        assert same_bits(decoded[name], tensor != 0 if as_bits else tensor)


def test_memory_layout_and_gradients_do_not_matter() -> None:
    matrix = torch.arange(12.0).view(3, 4)
    parameter = torch.nn.Parameter(torch.arange(3.0))
    decoded = decode_payload(encode_payload({"t": dense(matrix.T), "m": bits(matrix.T > 5), "p": dense(parameter)}))
    assert torch.equal(decoded["t"], matrix.T)
    assert torch.equal(decoded["m"], matrix.T > 5)
    assert torch.equal(decoded["p"], torch.arange(3.0))
    assert not decoded["p"].requires_grad


def test_what_arrives_shares_no_memory_with_what_was_sent() -> None:
    weights = torch.zeros(8)
    message = encode_payload({"w": dense(weights)})
    decoded = decode_payload(message)["w"]
    weights += 1
    assert torch.equal(decode_payload(message)["w"], torch.zeros(8))
    decoded += 1
    assert torch.equal(decode_payload(message)["w"], torch.zeros(8))


def test_an_empty_payload_is_an_empty_message() -> None:
    assert encode_payload({}).numel() == 0
    assert decode_payload(encode_payload({})) == {}


def decodes_or_says_why(message: Tensor) -> None:
    """A wire error, or tensors no larger than the message allows: a bit becomes a byte, and if sparse also a float."""
    try:
        decoded = decode_payload(message)
    except WireError:
        return
    for name, tensor in decoded.items():
        is_sparse = name.endswith(".support") or f"{name}.support" in decoded
        assert tensor.nbytes <= (8 * MOST_INDEXED if is_sparse else 8 * message.numel())


@quick
@given(st.binary(max_size=200))
def test_noise_never_decodes_into_another_error(noise: bytes) -> None:
    decodes_or_says_why(message_of(*noise))


def example_message() -> Tensor:
    return encode_payload(
        {
            "mask": bits(torch.arange(19) % 3 == 0),
            "scores": dense(torch.arange(6.0).view(2, 3)),
            "flags": dense(torch.tensor([True, False])),
            "none": dense(torch.empty(0, 4, dtype=torch.int64)),
            "layer": sparse(torch.arange(12.0).view(3, 4), torch.arange(12).view(3, 4) % 3 == 0),
            "few": sparse(torch.arange(70.0), torch.arange(70) % 60 == 5),
        }
    )


def test_no_part_of_a_message_is_taken_for_all_of_it() -> None:
    whole = example_message()
    for length in range(1, whole.numel()):
        with pytest.raises(WireError):
            decode_payload(whole[:length])
    for more in (whole[:1], whole, encode_payload({"more": dense(torch.ones(1))})):
        with pytest.raises(WireError):
            decode_payload(torch.cat([whole, more]))


def test_no_flipped_bit_is_taken_for_a_number() -> None:
    whole = example_message()
    for position in range(whole.numel()):
        for bit in range(8):
            damaged = whole.clone()
            damaged[position] ^= 1 << bit
            with pytest.raises(WireError) as refusal:
                decode_payload(damaged)
            assert "\n" not in str(refusal.value)


@quick
@given(st.data())
def test_several_damages_are_not_taken_for_numbers(data: st.DataObject) -> None:
    damaged = example_message()
    for _ in range(data.draw(st.integers(2, 6))):
        damaged[data.draw(st.integers(0, damaged.numel() - 1))] = data.draw(st.integers(0, 255))
    assume(not torch.equal(damaged, example_message()))
    with pytest.raises(WireError):
        decode_payload(damaged)


def test_a_damaged_entry_is_named() -> None:
    message = encode_payload({"first": dense(torch.ones(3)), "second": dense(torch.zeros(3))})
    message[-5] ^= 1
    with pytest.raises(WireError, match="entry 'second': payload has another checksum than was sent"):
        decode_payload(message)


def test_what_cannot_be_read_is_said_with_its_sender() -> None:
    said = "round 3, the upload of client 5 cannot be read: payload does not start"
    with pytest.raises(WireError, match=said), sent_by("round 3, the upload of client 5"):
        decode_payload(torch.zeros(20, dtype=torch.uint8))


def test_hundreds_of_entries_travel_together() -> None:
    sent = {f"x{number}": dense(torch.tensor([number])) for number in range(300)}
    message = encode_payload(sent)
    assert [int(tensor) for tensor in decode_payload(message).values()] == list(range(300))
    with pytest.raises(WireError, match="were announced"):
        decode_payload(message[: -(HEADER_BYTES + 8 + len("x299") + 8)])


@quick
@given(
    st.one_of(st.integers(0, 4), st.integers(0, 255)),
    st.one_of(st.integers(0, 10), st.integers(0, 255)),
    st.lists(st.one_of(st.sampled_from([0, 1, 2**31, 2**62, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1)), max_size=9),
    st.one_of(st.integers(0, 64), st.integers(0, 2**64 - 1)),
    st.binary(max_size=64),
)
def test_a_header_that_promises_the_impossible_is_refused(
    code: int, dtype: int, shape: list[int], body_length: int, rest: bytes
) -> None:
    decodes_or_says_why(message_with(code, dtype, shape, body_length, rest))


def message_with(code: int, dtype: int, shape: list[int], body_length: int, rest: bytes = b"") -> Tensor:
    """A message of one entry without a name that promises all this under a checksum that is right."""
    start = struct.pack("<2sBBBBBBQ", MAGIC, VERSION, code, dtype, len(shape), 0, 0, body_length)
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return message_of(*start, *struct.pack("<I", checksum(start + sizes, message_of(*rest))), *sizes, *rest)


def test_an_empty_shape_with_an_impossible_size_is_refused() -> None:
    with pytest.raises(WireError, match="shape"):
        decode_payload(message_with(Dense.code, 0, [0, 2**63], 0))
    assert decode_payload(message_with(Dense.code, 0, [0, 2**3], 0))[""].shape == (0, 8)


@pytest.mark.parametrize(
    ("position", "value", "complaint"),
    [(0, 0, "does not start with"), (2, 9, "version"), (3, 77, "codec 77"), (4, 99, "dtype 99")],
)
def test_a_foreign_header_is_named(position: int, value: int, complaint: str) -> None:
    message = example_message()
    message[position] = value
    with pytest.raises(WireError, match=complaint):
        decode_payload(message)


def test_pad_bits_must_be_zero() -> None:
    with pytest.raises(WireError, match="pad bits"):
        Bits.decode(message_of(0b10110001, 0b11100000), (10,), torch.bool)
    assert Bits.decode(message_of(0b10110001, 0b11100000), (11,), torch.uint8)[""].tolist()[-3:] == [1, 1, 1]


@pytest.mark.parametrize(("codec", "bytes_needed"), [(Dense, 12), (Bits, 1)])
def test_a_body_of_the_wrong_length_is_refused(codec: Any, bytes_needed: int) -> None:
    for length in (bytes_needed - 1, bytes_needed + 1):
        with pytest.raises(WireError, match="bytes"):
            codec.decode(torch.zeros(length, dtype=torch.uint8), (3,), torch.float32)


def test_a_flag_with_a_stray_bit_is_still_true_or_false() -> None:
    decoded = Dense.decode(message_of(0, 1, 2, 255), (4,), torch.bool)[""]
    assert decoded.view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_scalars_are_counted_whatever_their_width_and_where_they_are_sent() -> None:
    support = torch.tensor([True, False, True, False, False])
    payload = {
        "mask": bits(torch.ones(9)),
        "narrow": dense(torch.ones(2, 3), torch.float16),
        "pruned": sparse(torch.ones(5), support),
    }
    assert count_scalars(payload) == {"mask": 9, "narrow": 6, "pruned": 2}
    assert count_scalars({}) == {}
