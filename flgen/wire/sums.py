"""Sums that do not depend on the order of addition, and so not on the number of ranks (design, section 5).

Bits are counted and integers stay integers. Floats are added as int64 fixed point: each element is rounded
once to a multiple of 2^-fraction_bits (an error of at most 2^-(fraction_bits + 1) per upload), everything
after that is exact. `fast` adds float32 in whatever order it comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from flgen.errors import FlgenError

Reduction = Literal["exact", "fast"]

_PIECE = 2**17  # elements; what is made on the way from float to integer then stays in the cache


@dataclass(frozen=True)
class Summand:
    """What a rank without uploads must know to take part in a sum: one entry's shape and element type."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class RunningSum:
    """Weighted sums of uploads, one per entry name, in a form that ranks can add up exactly.

    Args:
        weight_limit: Upper bound of the sum of all weights over all ranks; it sizes the type that counts bits
            and the overflow check.
        reduction: "exact" (integers and fixed point) or "fast" (float32).
        fraction_bits: Binary places of the fixed point.
    """

    weight_limit: int
    reduction: Reduction = "exact"
    fraction_bits: int = 32
    summands: dict[str, Summand] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, upload: dict[str, Tensor], weight: int) -> None:
        """Add `weight` times one decoded upload.

        Raises:
            FlgenError: The sum could overflow, or the entry does not fit those of other clients; nothing was added.
        """
        self.check(upload)
        for name, tensor in upload.items():
            self.expect(name, Summand(tuple(tensor.shape), tensor.dtype), tensor.device)
        for name, tensor in upload.items():
            total = self.totals[name]
            if total.dtype == torch.int64 and tensor.is_floating_point():
                self._add_fixed_point(total, tensor, weight)
            else:
                total.add_(tensor.to(total.dtype), alpha=weight)

    def check(self, upload: dict[str, Tensor]) -> None:
        """Refuse a decoded upload with which the sum could overflow.

        Raises:
            FlgenError: It could.
        """
        for name, tensor in upload.items():
            if self._total_dtype(tensor.dtype) == torch.int64:
                self._check_range(name, tensor, self.fraction_bits if tensor.is_floating_point() else 0)

    def _add_fixed_point(self, total: Tensor, tensor: Tensor, weight: int) -> None:
        wide = torch.promote_types(tensor.dtype, torch.float32)  # holds the product: its factor is a power of two
        for sums, piece in zip(total.view(-1).split(_PIECE), tensor.reshape(-1).split(_PIECE), strict=True):
            fixed = (piece.to(wide) * 2.0**self.fraction_bits).round_()
            sums.add_(fixed.to(torch.int64), alpha=weight)

    def expect(self, name: str, summand: Summand, device: torch.device) -> None:
        """Make room for an entry, so that a rank that hosts nobody of the cohort adds zeros.

        Raises:
            FlgenError: Another client's entry of this name has another shape or type.
        """
        known = self.summands.get(name, summand)
        if known != summand:
            raise FlgenError(
                f"uploads cannot be summed: {name!r} is {known.dtype} {known.shape} from one client and "
                f"{summand.dtype} {summand.shape} from another"
            )
        if name not in self.totals:
            self.summands[name] = summand
            self.totals[name] = torch.zeros(summand.shape, dtype=self._total_dtype(summand.dtype), device=device)

    def values(self) -> dict[str, Tensor]:
        """Return the sums: integers for bits and integers, float64 for floats."""
        return {name: self._value(name, total) for name, total in self.totals.items()}

    def _value(self, name: str, total: Tensor) -> Tensor:
        if self.summands[name].dtype.is_floating_point:
            exact = self.reduction == "exact"
            return total.double().mul_(2.0**-self.fraction_bits) if exact else total.double()
        return total

    def _total_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if dtype.is_floating_point:
            return torch.int64 if self.reduction == "exact" else torch.float32
        if dtype == torch.bool and self.weight_limit < 2**31:
            return torch.uint8 if self.weight_limit < 2**8 else torch.int32
        return torch.int64

    def _check_range(self, name: str, tensor: Tensor, fraction_bits: int) -> None:
        largest = max(abs(float(bound)) for bound in tensor.aminmax()) if tensor.numel() else 0.0
        if not largest * self.weight_limit * 2.0**fraction_bits < 2.0**62:
            remedy = "lower --method.topology.fraction_bits or set --method.topology.reduction fast"
            raise FlgenError(
                f"the exact sum of {name!r} would overflow: an element of size {largest:.3g} with "
                f"{fraction_bits} fraction bits and total weight {self.weight_limit}"
                + (f"; {remedy}" if fraction_bits else "")
            )
