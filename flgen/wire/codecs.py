"""Codecs: a tensor to a one-dimensional uint8 tensor and back.

A payload is a mapping from names to `Entry`s, a tensor with the codec that carries it:

    {"mask": bits(m), "scores": dense(s)}

On the wire an entry is a short header (20 bytes plus 8 per dimension plus the name) and the body. The header
says everything a receiver needs, so an upload of d mask bits costs ceil(d / 8) bytes and a constant.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from flgen.errors import FlgenError

MAGIC = b"FG"
VERSION = 1
_MOST_ELEMENTS = 2**48  # beyond it, sizes are noise, and their product may not even fit an index
_HEADER = struct.Struct("<2sBBBBBxQ4x")  # magic, version, codec, dtype, dimensions, name length, body bytes
_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)


class WireError(FlgenError):
    """Bytes that arrived are not a payload of ours: truncated, damaged, or of another version."""


class Codec(Protocol):
    """How one tensor becomes bytes; `code` is the codec's number in the header."""

    code: ClassVar[int]

    def encode(self, tensor: Tensor) -> Tensor:
        """Return the body, uint8 (bytes,), on the tensor's device."""
        ...

    def decode(self, body: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the tensor of the given shape and dtype from its body."""
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

    def decode(self, body: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the tensor; raises WireError if the body's length does not fit the shape."""
        narrow = self.dtype or dtype
        if body.numel() != math.prod(shape) * narrow.itemsize:
            raise WireError(f"payload body has {body.numel()} bytes, {shape} of {narrow} needs another number")
        # A body may start at any byte of a message; only a fresh copy is aligned for wider elements.
        elements = body.bool() if narrow == torch.bool else body.clone().view(narrow)
        return elements.view(shape).to(dtype)


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

    def decode(self, body: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the zeros and ones; raises WireError for a wrong length or a pad bit that is set."""
        count = math.prod(shape)
        if body.numel() != (count + 7) // 8:
            raise WireError(f"payload body has {body.numel()} bytes, {count} bits need {(count + 7) // 8}")
        octets = torch.empty(body.numel(), 8, dtype=torch.uint8, device=body.device)
        for position in range(8):
            torch.bitwise_and(body >> (7 - position), 1, out=octets[:, position])
        flat = octets.view(-1)
        if count % 8 and bool(flat[count:].any()):
            raise WireError("payload has pad bits that are not zero: it is damaged")
        return flat[:count].view(shape).to(dtype)


_CODECS: dict[int, type[Dense] | type[Bits]] = {Dense.code: Dense, Bits.code: Bits}


@dataclass(frozen=True)
class Entry:
    """One tensor of a payload and the codec that carries it."""

    tensor: Tensor
    codec: Codec


Payload = Mapping[str, Entry]


def dense(tensor: Tensor, dtype: torch.dtype | None = None) -> Entry:
    """Send every element; `dtype` (float16, bfloat16) narrows floats on the wire."""
    return Entry(tensor, Dense(dtype))


def bits(tensor: Tensor) -> Entry:
    """Send one bit per element of a tensor of zeros and ones; it arrives as bool."""
    return Entry(tensor.bool(), Bits())


def encode_payload(payload: Payload) -> Tensor:
    """Return the payload as one uint8 tensor (bytes,): what the ledger counts and the process group carries."""
    parts = []
    for name, entry in payload.items():
        tensor = entry.tensor
        body = entry.codec.encode(tensor)
        carried = getattr(entry.codec, "dtype", None) or tensor.dtype
        label = name.encode("ascii")
        header = _HEADER.pack(
            MAGIC, VERSION, entry.codec.code, _DTYPES.index(carried), tensor.ndim, len(label), body.numel()
        )
        header += struct.pack(f"<{tensor.ndim}Q", *tensor.shape) + label
        parts += [torch.frombuffer(bytearray(header), dtype=torch.uint8).to(body.device), body]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def decode_payload(message: Tensor) -> dict[str, Tensor]:
    """Return the tensors of an encoded payload by name, on the message's device.

    Args:
        message: uint8 (bytes,), as `encode_payload` made it.

    Raises:
        WireError: The bytes are not a whole payload of this version.
    """
    tensors: dict[str, Tensor] = {}
    position = 0
    while position < message.numel():
        name, tensor, position = _decode_entry(message, position)
        tensors[name] = tensor
    return tensors


def _decode_entry(message: Tensor, position: int) -> tuple[str, Tensor, int]:
    def take(length: int) -> Tensor:
        nonlocal position
        if position + length > message.numel():
            raise WireError(f"payload ends after {message.numel()} bytes, {position + length} were announced")
        position += length
        return message[position - length : position]

    magic, version, code, dtype, dimensions, label_length, body_length = _HEADER.unpack(
        bytes(take(_HEADER.size).tolist())
    )
    if magic != MAGIC or version != VERSION:
        raise WireError(f"payload does not start with {MAGIC!r} version {VERSION}: damaged, or sent by another version")
    if code not in _CODECS or dtype >= len(_DTYPES):
        raise WireError(f"payload names codec {code} and dtype {dtype}, which do not exist")
    shape = struct.unpack(f"<{dimensions}Q", bytes(take(8 * dimensions).tolist()))
    if math.prod(max(size, 1) for size in shape) > _MOST_ELEMENTS:
        raise WireError(f"payload announces a tensor of shape {shape}: it is damaged")
    try:
        name = bytes(take(label_length).tolist()).decode("ascii")
    except UnicodeDecodeError:
        raise WireError("payload has an entry whose name is not readable: it is damaged") from None
    return name, _CODECS[code]().decode(take(body_length), shape, _DTYPES[dtype]), position
