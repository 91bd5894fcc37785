"""Sparse entries: the elements at a support and the support itself, in the fewest bytes (DisPFL, check 10)."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flgen.wire.codecs import Sparse, WireError, decode_payload, dense, encode_payload, sparse

BITMASK, INDICES = 0, 1
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

quick = settings(max_examples=100, deadline=None)


def body_of(values: Tensor, support: Tensor) -> list[int]:
    return Sparse(support).encode(values).tolist()


def support_of(elements: int, *active: int) -> Tensor:
    support = torch.zeros(elements, dtype=torch.bool)
    support[list(active)] = True
    return support


def floats(*values: float) -> list[int]:
    return list(struct.pack(f"<{len(values)}f", *values))


def decode(body: list[int], elements: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return Sparse.decode(torch.tensor(body, dtype=torch.uint8), (elements,), dtype)


@st.composite
def sparse_tensors(draw: Any) -> tuple[Tensor, Tensor]:
    """Values of any floating type and shape, zero outside a support of any density."""
    shape = tuple(draw(st.lists(st.integers(0, 12), max_size=3)))
    dtype = draw(st.sampled_from(FLOATS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    support = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0]))
    values = torch.randn(shape, generator=generator).to(dtype)
    values[torch.rand(shape, generator=generator) < 0.2] = 0
    return values * support, support


def test_six_of_ten_elements_cost_their_floats_a_bitmask_and_a_byte() -> None:
    support = support_of(10, 0, 2, 3, 7, 8, 9)  # 1011000111
    values = torch.arange(10.0)
    assert body_of(values, support) == [BITMASK, 0xB1, 0xC0, *floats(0, 2, 3, 7, 8, 9)]
    assert len(body_of(values, support)) == 4 * 6 + 2 + 1
    message = encode_payload({"w": sparse(values, support)})
    assert message.numel() == 20 + 8 + len("w") + 27


def test_below_one_in_thirty_two_the_indices_are_sent() -> None:
    values = torch.arange(64.0)
    assert body_of(values, support_of(64, 40)) == [INDICES, 40, 0, 0, 0, *floats(40)]
    assert body_of(values, support_of(64, 1, 40)) == [BITMASK, 64, 0, 0, 0, 0, 128, 0, 0, *floats(1, 40)]


@pytest.mark.parametrize(("elements", "active"), [(3200, 99), (3200, 100), (3200, 101), (2_359_296, 844_080)])
def test_the_smaller_encoding_is_chosen(elements: int, active: int) -> None:
    support = support_of(elements, *range(0, 2 * active, 2))
    body = Sparse(support).encode(torch.ones(elements))
    assert body.numel() == 1 + 4 * active + min(4 * active, math.ceil(elements / 8))
    assert body[0] == (INDICES if active < 100 else BITMASK)


def test_the_model_of_the_specification_costs_its_values_its_masks_and_seven_bytes() -> None:
    partial = {589_824: (3, 424_498), 1_179_648: (1, 634_289), 2_359_296: (3, 844_080)}
    bodies = 0
    for elements, (tensors, active) in partial.items():
        support = torch.arange(elements) < active
        bodies += tensors * Sparse(support).encode(torch.zeros(elements)).numel()
    dense_bytes = 4 * (11_173_962 - 10_027_008)
    assert dense_bytes + bodies == 23_601_284 + 7  # check 10, and the kind of each support


@pytest.mark.parametrize(("elements", "kind"), [(0, BITMASK), (1, INDICES), (1000, INDICES)])
def test_an_empty_support_costs_one_byte(elements: int, kind: int) -> None:
    body = body_of(torch.ones(elements), torch.zeros(elements, dtype=torch.bool))
    assert body == [kind]
    arrived = decode(body, elements)
    assert arrived[""].tolist() == [0.0] * elements
    assert arrived[".support"].tolist() == [False] * elements


@quick
@given(sparse_tensors())
def test_values_and_support_arrive_as_they_were(sent: tuple[Tensor, Tensor]) -> None:
    values, support = sent
    arrived = decode_payload(encode_payload({"w": sparse(values, support)}))
    assert list(arrived) == ["w", "w.support"]
    assert arrived["w"].dtype == values.dtype
    assert arrived["w.support"].dtype == torch.bool
    assert torch.equal(arrived["w"], values)
    assert torch.equal(arrived["w.support"], support)


@pytest.mark.parametrize("density", [0.01, 0.4, 1.0])
def test_large_tensors_arrive_as_they_were(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    support = torch.rand(300, 1000, generator=generator) < density
    values = torch.randn(300, 1000, generator=generator) * support
    arrived = decode_payload(encode_payload({"w": sparse(values, support)}))
    assert torch.equal(arrived["w"], values)
    assert torch.equal(arrived["w.support"], support)


@pytest.mark.parametrize("elements", [4, 400])
def test_zeros_and_nan_at_the_support_arrive_and_nothing_else_does(elements: int) -> None:
    values = torch.full((elements,), float("nan"))
    values[0], values[1] = 0.0, -0.0
    arrived = decode_payload(encode_payload({"w": sparse(values, support_of(elements, 0, 1, 3))}))
    assert arrived["w.support"].nonzero().view(-1).tolist() == [0, 1, 3]
    assert arrived["w"][:2].signbit().tolist() == [False, True]
    assert arrived["w"][3].isnan()
    assert not arrived["w"][2].any()
    assert not arrived["w"][4:].any()


def test_memory_layout_and_gradients_do_not_matter() -> None:
    matrix = torch.nn.Parameter(torch.arange(1.0, 13).view(3, 4))
    support = torch.arange(12).view(3, 4) % 5 == 0
    arrived = decode_payload(encode_payload({"w": sparse(matrix.T, support.T)}))
    assert torch.equal(arrived["w"], matrix.T.detach() * support.T)
    assert torch.equal(arrived["w.support"], support.T)
    assert not arrived["w"].requires_grad


def test_entries_of_all_kinds_travel_together() -> None:
    values, support = torch.ones(2, 2), torch.eye(2).bool()
    arrived = decode_payload(encode_payload({"a": dense(values), "w": sparse(values, support), "z": dense(values)}))
    assert list(arrived) == ["a", "w", "w.support", "z"]
    assert torch.equal(arrived["w"], torch.eye(2))


def test_two_tensors_of_one_name_are_refused() -> None:
    message = encode_payload({"w": sparse(torch.ones(2), support_of(2)), "w.support": dense(torch.ones(2))})
    with pytest.raises(WireError, match=r"two tensors named 'w\.support'"):
        decode_payload(message)


@pytest.mark.parametrize(
    ("values", "support"),
    [
        (torch.ones(3), torch.ones(4).bool()),
        (torch.ones(4), torch.ones(2, 2).bool()),
        (torch.ones(3), torch.ones(3)),
        (torch.ones(3).long(), torch.ones(3).bool()),
    ],
)
def test_what_does_not_fit_together_is_not_sent(values: Tensor, support: Tensor) -> None:
    with pytest.raises(ValueError, match="a bool support of one shape"):
        sparse(values, support)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ([], "kind None"),
        ([2, 0, 0], "kind 2"),
        ([BITMASK, 0xB1], "10 bits need 2"),
        ([BITMASK, 0x80, 0x20, *floats(1)], "pad bits"),
        ([BITMASK, 0x80, 0x00], "0 bytes"),
        ([BITMASK, 0x80, 0x00, *floats(1), 0], "5 bytes"),
        ([INDICES, 3, 0, 0, 0], "4 bytes"),
        ([INDICES, 3, 0, 0, 0, *floats(1), 0], "5 bytes"),
        ([INDICES, 10, 0, 0, 0, *floats(1)], "ascend within 10"),
        ([INDICES, 255, 255, 255, 255, *floats(1)], "ascend within 10"),
        ([INDICES, 5, 0, 0, 0, 5, 0, 0, 0, *floats(1, 2)], "ascend within 10"),
        ([INDICES, 5, 0, 0, 0, 4, 0, 0, 0, *floats(1, 2)], "ascend within 10"),
    ],
)
def test_damaged_bodies_are_refused(body: list[int], complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        decode(body, 10)


def test_sparse_integers_do_not_exist() -> None:
    with pytest.raises(WireError, match=r"torch.int32"):
        decode([INDICES, 3, 0, 0, 0, 1, 0, 0, 0], 10, torch.int32)


def test_a_few_bytes_cannot_ask_for_much_memory() -> None:
    with pytest.raises(WireError, match="kind 1"):
        decode([INDICES], 2**26 + 1)


@quick
@given(st.sampled_from([BITMASK, INDICES, 7]), st.binary(max_size=60), st.integers(0, 70), st.sampled_from(FLOATS))
def test_noise_decodes_into_what_fits_or_says_why(kind: int, noise: bytes, elements: int, dtype: torch.dtype) -> None:
    try:
        arrived = decode([kind, *noise], elements, dtype)
    except WireError:
        return
    assert arrived[""].shape == arrived[".support"].shape == (elements,)
    assert not arrived[""][~arrived[".support"]].any()
    place = 4 * int(arrived[".support"].sum()) if kind == INDICES else math.ceil(elements / 8)
    assert len(noise) == place + dtype.itemsize * int(arrived[".support"].sum())
