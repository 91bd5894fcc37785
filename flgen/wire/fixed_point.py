"""Fixed point mod 2^k: how floats become integers that can be added under masks, and back (gptfl.md, section 2.7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

_PIECE = 2**16  # elements; what is made on the way from float to integer then stays in the cache


@dataclass(frozen=True)
class FixedPoint:
    """Numbers in [-B, B] as multiples of 2^-f, negative ones in the upper half of Z_R.

    One number is off by at most 2^-(f+1), so a sum of n by at most n 2^-(f+1), as long as none was clipped.

    Args:
        clip: Bound B of a coordinate.
        fraction_bits: Binary places f.
        modulus_bits: k, with R = 2^k.
    """

    clip: float
    fraction_bits: int
    modulus_bits: int

    @property
    def capacity(self) -> int:
        """The most summands whose sum cannot wrap: n B 2^f < R / 2."""
        largest = math.ceil(self.clip * 2**self.fraction_bits)
        return (2 ** (self.modulus_bits - 1) - 1) // largest

    def encode(self, values: Tensor, minus: Tensor | None = None, weight: float = 1.0) -> tuple[Tensor, int]:
        """Return q = round(weight clip(x) 2^f), half to even, and how many coordinates were clipped.

        Args:
            values: Floats, any shape.
            minus: What is subtracted first, of the same shape.
            weight: At most 1, so that the bound holds for the product.

        Returns:
            q, int64 (d,), signed; and a count.

        Raises:
            FlgenError: A number is infinite or none.
        """
        q = torch.empty(values.numel(), dtype=torch.int64, device=values.device)
        clipped = torch.zeros((), dtype=torch.int64, device=values.device)
        total = torch.zeros((), dtype=torch.float64, device=values.device)
        flat = values.reshape(-1).split(_PIECE)
        below = [None] * len(flat) if minus is None else minus.reshape(-1).split(_PIECE)
        for out, x, y in zip(q.split(_PIECE), flat, below, strict=True):
            wide = x.double() if y is None else x.double() - y
            clipped += (wide.abs() > self.clip).sum()
            total += wide.sum()
            out.copy_(wide.clamp(-self.clip, self.clip).mul_(weight * 2.0**self.fraction_bits).round_())
        if not total.isfinite():  # then a term is not: NaN would become some integer, and infinity the bound
            raise FlgenError("NaN and infinity have no fixed point")
        return q, int(clipped)

    def decode(self, q: Tensor) -> Tensor:
        """Return a signed sum of codes, int64, as float64."""
        return q.double().mul_(2.0**-self.fraction_bits)

    def to_residues(self, q: Tensor) -> Tensor:
        """Return signed integers mod R, int64 in [0, R)."""
        return q.bitwise_and(2**self.modulus_bits - 1)

    def from_residues(self, z: Tensor) -> Tensor:
        """Return residues, int64 in [0, R), as signed integers: z below R / 2 and z - R from there on."""
        spare = 64 - self.modulus_bits
        return (z << spare) >> spare  # the topmost of the k bits becomes the sign

    def fits(self, largest: float) -> bool:
        """Whether a sum of at most this size keeps its sign mod R."""
        return largest < 2.0 ** (self.modulus_bits - 1)
