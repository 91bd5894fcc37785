"""Fixed point mod 2^k: the worked example, the error it states, and the bound within which nothing wraps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flgen.errors import FlgenError
from flgen.wire.fixed_point import FixedPoint

ROWS = [[0.1, -0.3, 1.0, -1.0], [0.2, 0.7, -2.5, -2.0], [-0.05, 1e-6, 3.999999, -0.5]]


def test_check_8_the_worked_example() -> None:
    code = FixedPoint(clip=4.0, fraction_bits=16, modulus_bits=32)
    rows = [torch.tensor(row, dtype=torch.float64) for row in ROWS]
    coded = [code.encode(row)[0] for row in rows]
    assert [q.tolist() for q in coded] == [
        [6554, -19661, 65536, -65536],
        [13107, 45875, -163840, -131072],
        [-3277, 0, 262144, -32768],
    ]
    total = code.to_residues(sum(code.to_residues(q) for q in coded))
    assert total.tolist() == [16384, 26214, 163840, 4294737920]
    signed = code.from_residues(total)
    assert signed[-1] == -229376
    mean = code.decode(signed) / 3
    assert mean.tolist() == pytest.approx([0.0833333333, 0.1333312988, 0.8333333333, -1.1666666667], abs=1e-9)
    error = float((mean - torch.stack(rows).mean(0)).abs().max())
    assert 2.3e-6 < error < 2.4e-6 <= 2**-17


def test_the_largest_number_of_summands_is_that_of_the_specification() -> None:
    assert FixedPoint(4.0, 20, 32).capacity == 511
    code = FixedPoint(4.0, 8, 16)
    assert code.capacity == 31
    for extreme in (4.0, -4.0):
        q, _ = code.encode(torch.full((1,), extreme))
        for count, holds in ((31, True), (32, extreme < 0)):  # -R/2 is still a residue of its own
            total = code.to_residues(code.to_residues(q) * count)
            assert (code.decode(code.from_residues(total)) == count * extreme) == holds


def test_what_is_clipped_is_counted() -> None:
    q, clipped = FixedPoint(2.0, 4, 32).encode(torch.tensor([1.0, 2.0, 2.5, -7.0]))
    assert q.tolist() == [16, 32, 32, -32]
    assert clipped == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 69_999])
def test_what_is_no_number_is_refused(bad: float, at: int) -> None:
    x = torch.zeros(70_000)
    x[at] = bad
    with pytest.raises(FlgenError, match="NaN and infinity have no fixed point"):
        FixedPoint(2.0, 4, 32).encode(x)
    infinite = torch.full((3,), float("inf"))
    with pytest.raises(FlgenError, match="have no fixed point"):
        FixedPoint(2.0, 4, 32).encode(infinite, minus=infinite)


def test_minus_zero_and_what_rounds_to_it_are_zero() -> None:
    code = FixedPoint(2.0, 4, 32)
    q, _ = code.encode(torch.tensor([-0.0, -1e-9, -(2.0**-5)]))
    assert q.tolist() == [0, 0, 0]
    assert code.to_residues(q).tolist() == [0, 0, 0]
    assert torch.equal(code.encode(torch.zeros(0))[0], torch.zeros(0, dtype=torch.int64))


def test_half_is_rounded_to_even() -> None:
    q, _ = FixedPoint(4.0, 1, 32).encode(torch.tensor([0.25, 0.75, -0.25, 1.25]))
    assert q.tolist() == [0, 2, 0, 2]


def test_what_is_sent_is_the_weighted_clipped_difference() -> None:
    code = FixedPoint(1.0, 10, 32)
    q, clipped = code.encode(torch.tensor([[10.5, 12.0]]), minus=torch.tensor([[10.0, 10.0]]), weight=0.25)
    assert q.tolist() == [128, 256]
    assert clipped == 1


@given(
    st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=20), st.sampled_from([10, 20, 24])
)
def test_a_sum_is_off_by_at_most_half_a_step_per_summand(rows: list[list[float]], fraction_bits: int) -> None:
    code = FixedPoint(3.0, fraction_bits, 40)
    uploads = torch.tensor(rows, dtype=torch.float64)
    total = sum(code.to_residues(code.encode(row)[0]) for row in uploads)
    found = code.decode(code.from_residues(code.to_residues(total)))
    assert float((found - uploads.sum(0)).abs().max()) <= len(rows) * 2.0 ** -(fraction_bits + 1) + 1e-12


def test_a_long_vector_is_coded_like_its_pieces() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    code = FixedPoint(1.5, 20, 32)
    q, clipped = code.encode(x)
    assert torch.equal(q, (x.double().clamp(-1.5, 1.5) * 2**20).round().long())
    assert clipped == int((x.abs() > 1.5).sum()) > 0
