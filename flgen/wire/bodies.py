"""Bodies: how one tensor becomes a one-dimensional uint8 tensor and back; `flgen.wire.codecs` gives them headers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from flgen.errors import FlgenError

_PIECE = 2**16  # elements; what is made on the way to a sparse body then stays in the cache
_MOST_INDEXED = 2**26  # elements; so a few damaged bytes cannot ask for more than 0.6 GB


class WireError(FlgenError):
    """Bytes that arrived are not a payload of ours: truncated, damaged, or of another version."""


class Codec(Protocol):
    """How one tensor becomes bytes; `code` is the codec's number in the header.

    A codec may hold what encoding takes besides the tensor; the header and the body are all that decoding takes.
    """

    code: ClassVar[int]

    def encode(self, tensor: Tensor) -> Tensor:
        """Return the body, uint8 (bytes,), on the tensor's device."""
        ...

    @staticmethod
    def decode(body: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what a body holds, each tensor by what follows the entry's name: "" for the entry itself."""
        ...


@dataclass(frozen=True)
class Dense:
    """Every element as it is, optionally narrowed to `dtype` on the way (fp16, bf16)."""

    dtype: torch.dtype | None = None
    code: ClassVar[int] = 1

    def encode(self, tensor: Tensor) -> Tensor:
        """Return the element bytes, in memory order."""
        narrowed = tensor if self.dtype is None else tensor.to(self.dtype)
        return narrowed.contiguous().view(-1).view(torch.uint8)

    @staticmethod
    def decode(body: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensor; raises WireError if the body's length does not fit the shape."""
        if body.numel() != math.prod(shape) * dtype.itemsize:
            raise WireError(f"payload body has {body.numel()} bytes, {shape} of {dtype} needs another number")
        # A body may start at any byte of a message; only a fresh copy is aligned for wider elements.
        elements = body.bool() if dtype == torch.bool else body.clone().view(dtype)
        return {"": elements.view(shape)}


@dataclass(frozen=True)
class Bits:
    """One bit per element, most significant bit first, pad bits zero (prism.md, check 8: 1011000111 is B1 C0)."""

    code: ClassVar[int] = 2

    def encode(self, tensor: Tensor) -> Tensor:
        """Return ceil(n / 8) bytes for n elements that are 0 or 1."""
        flat = tensor.reshape(-1).to(torch.uint8)
        octets = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
        packed = octets[:, 7].clone()
        for position in range(7):
            packed |= octets[:, position] << (7 - position)
        return packed

    @staticmethod
    def decode(body: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the zeros and ones; raises WireError for a wrong length or a pad bit that is set."""
        count = math.prod(shape)
        if body.numel() != (count + 7) // 8:
            raise WireError(f"payload body has {body.numel()} bytes, {count} bits need {(count + 7) // 8}")
        flat = _octets(body.device).index_select(0, body.int()).view(-1)
        if count % 8 and bool(flat[count:].any()):
            raise WireError("payload has pad bits that are not zero: it is damaged")
        return {"": flat[:count].view(shape).to(dtype)}


@dataclass(frozen=True)
class Sparse:
    """The elements at a support, which goes along as a bitmask or as ascending uint32 indices, whichever is smaller.

    The body is one byte for the kind of support, the support, then its elements in row-major order.
    """

    support: Tensor
    code: ClassVar[int] = 3

    def encode(self, tensor: Tensor) -> Tensor:
        """Return 1 + min(ceil(n / 8), 4 a) bytes and the a elements at the support of n."""
        support, values = self.support.reshape(-1), tensor.detach().reshape(-1)
        active = int(support.count_nonzero())
        kind = int(32 * active < support.numel() <= _MOST_INDEXED)
        if kind == 1:
            indices = support.nonzero().view(-1)
            where, elements = indices.to(torch.int32).view(torch.uint8), values[indices]
        else:
            slots = values.new_empty(1 + active)  # the first takes what is not sent
            for place, rank in _ranks(support):
                slots.index_copy_(0, rank.long(), values[place])
            where, elements = Bits().encode(support), slots[1:]
        return torch.cat([where.new_tensor([kind]), where, elements.view(torch.uint8)])

    @staticmethod
    def decode(body: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the dense tensor, zero outside the support, and the support; raises WireError if they do not fit."""
        count, kind = math.prod(shape), int(body[0]) if body.numel() else None
        if kind not in (0, 1) or not dtype.is_floating_point or (kind == 1 and count > _MOST_INDEXED):
            raise WireError(f"payload has {count} {dtype} elements with a support of kind {kind}: it is damaged")
        if kind == 0:
            end = 1 + (count + 7) // 8
            support = Bits.decode(body[1:end], (count,), torch.bool)[""]
            elements = Dense.decode(body[end:], (int(support.count_nonzero()),), dtype)[""]
            slots = torch.cat([elements.new_zeros(1), elements])  # the first is what was not sent
            values = elements.new_empty(count)
            for place, rank in _ranks(support):
                torch.index_select(slots, 0, rank, out=values[place])
        else:
            active = (body.numel() - 1) // (4 + dtype.itemsize)
            indices = body[1 : 1 + 4 * active].clone().view(torch.int32).long()
            if active and not (indices[0] >= 0 and indices[-1] < count and bool((indices.diff() > 0).all())):
                raise WireError(f"payload has indices that do not ascend within {count} elements: it is damaged")
            elements = Dense.decode(body[1 + 4 * active :], (active,), dtype)[""]
            values = elements.new_zeros(count).index_copy_(0, indices, elements)
            support = torch.zeros(count, dtype=torch.bool, device=body.device).index_fill_(0, indices, True)
        return {"": values.view(shape), ".support": support.view(shape)}


@cache
def _octets(device: torch.device) -> Tensor:
    """Return the eight bits of every byte, the most significant first, uint8 (256, 8)."""
    return (torch.arange(256, device=device)[:, None] >> torch.arange(7, -1, -1, device=device) & 1).to(torch.uint8)


def _ranks(support: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield, piece by piece, how many active positions there are up to each active one, and 0 for the others.

    So the elements move without a branch on the support, which no processor predicts, and, on the CPU, in the cache.
    """
    dtype = torch.int32 if support.numel() < 2**31 else torch.int64
    before = start = 0
    for piece in support.split(_PIECE) if support.device.type == "cpu" else [support]:
        yield slice(start, start + piece.numel()), piece.cumsum(0, dtype=dtype).add_(before).mul_(piece)
        start += piece.numel()
        before += int(piece.count_nonzero())
