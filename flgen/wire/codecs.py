"""Codecs: a tensor to a one-dimensional uint8 tensor and back.

A payload is a mapping from names to `Entry`s, a tensor with the codec that carries it:

    {"mask": bits(m), "scores": dense(s), "weights": sparse(w, support), "counts": coded(c, contexts, alphabet=11)}

Each arrives under its name; of a sparse one the support arrives too, as "weights.support".

On the wire an entry is a short header (20 bytes plus 8 per dimension plus the name) and the body. The header
says everything a receiver needs, so an upload of d mask bits costs ceil(d / 8) bytes and a constant.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flgen.wire.bodies import Bits, Codec, Dense, Sparse, WireError
from flgen.wire.entropy_coding import Coded

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

_CODECS: dict[int, type[Codec]] = {Dense.code: Dense, Bits.code: Bits, Sparse.code: Sparse, Coded.code: Coded}


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


def sparse(values: Tensor, support: Tensor) -> Entry:
    """Send the elements at a support, zeros among them too; the support arrives as "<name>.support".

    Args:
        values: Floats of any shape; what lies outside the support arrives as zero.
        support: Bool, the shape of `values`, on its device.

    Raises:
        ValueError: The two do not fit together.
    """
    if values.shape != support.shape or not values.is_floating_point() or support.dtype != torch.bool:
        raise ValueError(
            f"floats and a bool support of one shape expected, got {values.dtype} {tuple(values.shape)} "
            f"and {support.dtype} {tuple(support.shape)}"
        )
    return Entry(values, Sparse(support))


def coded(symbols: Tensor, contexts: Tensor | None = None, alphabet: int = 2) -> Entry:
    """Send small integers in as few bits as they and what both ends know of them allow (prism.md, section 7).

    Args:
        symbols: Bool, or uint8 below `alphabet`, any shape; they arrive as what they are.
        contexts: What both ends know, such as `probability_levels`: uint8, the shape of `symbols`. Symbols of one
            context are coded with the frequencies that they have. The receiver hands the same to `decode_payload`.
        alphabet: Number of symbols there could be, 2 to 256: K + 1 for counts among K.

    Raises:
        ValueError: They do not fit together.
    """
    if symbols.dtype not in (torch.bool, torch.uint8) or not 2 <= alphabet <= 256:
        raise ValueError(f"bool or uint8 symbols of 2 to 256 kinds expected, got {alphabet} kinds of {symbols.dtype}")
    if contexts is not None and (contexts.shape != symbols.shape or contexts.dtype != torch.uint8):
        raise ValueError(
            f"uint8 contexts of shape {tuple(symbols.shape)} expected, got {contexts.dtype} {tuple(contexts.shape)}"
        )
    largest = int(symbols.max()) if symbols.numel() else 0
    if largest >= alphabet or (symbols.dtype == torch.bool and alphabet > 2):
        raise ValueError(f"{alphabet} kinds of symbols expected, got {symbols.dtype} up to {largest}")
    return Entry(symbols, Coded(alphabet, contexts))


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


def count_scalars(payload: Payload) -> dict[str, int]:
    """Return how many numbers each entry carries, whatever their width; of a sparse one those at its support."""
    counted = {}
    for name, entry in payload.items():
        support = getattr(entry.codec, "support", None)
        counted[name] = entry.tensor.numel() if support is None else int(support.count_nonzero())
    return counted


def decode_payload(message: Tensor, contexts: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors of an encoded payload by name, on the message's device.

    Args:
        message: uint8 (bytes,), as `encode_payload` made it.
        contexts: Those given to `coded`, by the entry's name.

    Raises:
        WireError: The bytes are not a whole payload of this version, or their contexts were others.
    """
    tensors: dict[str, Tensor] = {}
    position = 0
    while position < message.numel():
        parts, position = _decode_entry(message, position, contexts or {})
        for name, tensor in parts.items():
            if name in tensors:
                raise WireError(f"payload has two tensors named {name!r}: rename an entry")
            tensors[name] = tensor
    return tensors


def _decode_entry(message: Tensor, position: int, contexts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
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
    body = take(body_length)
    if code == Coded.code:
        parts = Coded.decode(body, shape, _DTYPES[dtype], contexts.get(name))
    else:
        parts = _CODECS[code].decode(body, shape, _DTYPES[dtype])
    return {name + part: tensor for part, tensor in parts.items()}, position
