"""Codecs: a tensor to a one-dimensional uint8 tensor and back.

A payload is a mapping from names to `Entry`s, a tensor with the codec that carries it:

    {"mask": bits(m), "scores": dense(s), "weights": sparse(w, support), "counts": coded(c, contexts, alphabet=11)}

Each arrives under its name; of a sparse one the support arrives too, as "weights.support".

On the wire an entry is a short header (20 bytes plus 8 per dimension plus the name) and the body. The header
says everything a receiver needs, so an upload of d mask bits costs ceil(d / 8) bytes and a constant. It has a checksum
of the entry and says how many entries follow: what was damaged or cut on its way is refused, never taken for a tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flgen.wire.bodies import Bits, Codec, Dense, Sparse, WireError
from flgen.wire.checksum import checksum
from flgen.wire.entropy_coding import Coded

MAGIC = b"FG"
VERSION = 2
_MOST_ELEMENTS = 2**48  # beyond it, sizes are noise, and their product may not even fit an index
_HEADER = struct.Struct("<2sBBBBBBQ")  # magic, version, codec, dtype, dimensions, name length, entries to come, bytes
_CHECKSUM = struct.Struct("<I")
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
    for following, (name, entry) in zip(reversed(range(len(payload))), payload.items(), strict=True):
        tensor = entry.tensor
        body = entry.codec.encode(tensor)
        carried = getattr(entry.codec, "dtype", None) or tensor.dtype
        label = name.encode("ascii")
        kinds = entry.codec.code, _DTYPES.index(carried)
        start = _HEADER.pack(MAGIC, VERSION, *kinds, tensor.ndim, len(label), following % 256, body.numel())
        shape_and_name = struct.pack(f"<{tensor.ndim}Q", *tensor.shape) + label
        header = start + _CHECKSUM.pack(checksum(start + shape_and_name, body)) + shape_and_name
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
    following: int | None = None
    while position < message.numel() or following:
        parts, position, left = _decode_entry(message, position, contexts or {})
        if following is not None and left != (following - 1) % 256:
            raise WireError(f"payload has an entry with {left} to come after one with {following}: it is damaged")
        following = left
        for name, tensor in parts.items():
            if name in tensors:
                raise WireError(f"payload has two tensors named {name!r}: rename an entry")
            tensors[name] = tensor
    return tensors


@contextmanager
def sent_by(sender: str) -> Iterator[None]:
    """Let what is wrong with bytes be said together with where they come from.

    Args:
        sender: For the message, such as "round 3, the upload of client 5".

    Raises:
        WireError: What was decoded within was damaged.
    """
    try:
        yield
    except WireError as error:
        raise WireError(f"{sender} cannot be read: {error}") from error


def _decode_entry(message: Tensor, position: int, contexts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int, int]:
    """Return the tensors of an entry, where it ends, and how many entries follow."""

    def take(length: int) -> Tensor:
        nonlocal position
        if position + length > message.numel():
            raise WireError(f"payload ends after {message.numel()} bytes, {position + length} were announced")
        position += length
        return message[position - length : position]

    start = bytes(take(_HEADER.size).tolist())
    magic, version, code, dtype, dimensions, label_length, following, body_length = _HEADER.unpack(start)
    if magic != MAGIC or version != VERSION:
        raise WireError(f"payload does not start with {MAGIC!r} version {VERSION}: damaged, or sent by another version")
    if code not in _CODECS or dtype >= len(_DTYPES):
        raise WireError(f"payload names codec {code} and dtype {dtype}, which do not exist")
    (announced,) = _CHECKSUM.unpack(bytes(take(_CHECKSUM.size).tolist()))
    sizes = bytes(take(8 * dimensions).tolist())
    shape = struct.unpack(f"<{dimensions}Q", sizes)
    if math.prod(max(size, 1) for size in shape) > _MOST_ELEMENTS:
        raise WireError(f"payload announces a tensor of shape {shape}: it is damaged")
    label = bytes(take(label_length).tolist())
    try:
        name = label.decode("ascii")
    except UnicodeDecodeError:
        raise WireError("payload has an entry whose name is not readable: it is damaged") from None
    body = take(body_length)
    if checksum(start + sizes + label, body) != announced:
        raise WireError(f"entry {name!r}: payload has another checksum than was sent: it is damaged")
    try:
        parts = _decode_body(code, body, shape, _DTYPES[dtype], contexts.get(name))
    except WireError as error:
        raise WireError(f"entry {name!r}: {error}") from error
    return {name + part: tensor for part, tensor in parts.items()}, position, following


def _decode_body(
    code: int, body: Tensor, shape: tuple[int, ...], dtype: torch.dtype, contexts: Tensor | None
) -> dict[str, Tensor]:
    if code == Coded.code:
        return Coded.decode(body, shape, dtype, contexts)
    return _CODECS[code].decode(body, shape, dtype)
