"""Entropy coding: small integers in as few bits as their frequencies allow, a mask in less than one bit per weight.

Symbols are coded by a range coder in runs, each with the frequencies that it has. A run may be a layer, or all symbols
for which both ends already know the same thing: the level of a shared probability, their context. So a code is as short
as the entropy of the symbols given their contexts, however good or bad the probabilities were that gave the contexts.

The frequencies of a run go first, as the square roots of its counts, rounded: the error that this leaves costs less
than a bit for each count, whatever its size, and a root of a run of n takes log2(sqrt(n) + 2) bits. (PRISM's
specification, section 7, has the bounds that this comes close to.)
"""

from __future__ import annotations

import math
import struct
import weakref
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.wire.bodies import Bits, WireError

if TYPE_CHECKING:
    from numpy.typing import NDArray

constriction = deferred_module("constriction")

MOST_CODED = 2**26
"""Symbols of one code at most: a few bytes can announce many symbols that are all alike."""

_PACKED, _TOGETHER, _BY_CONTEXT = 0, 1, 2
_orders: deque[tuple[weakref.ref[Tensor], int, NDArray[np.int64], list[int]]] = deque(maxlen=2)
_START = struct.Struct("<BBI")  # kind, largest symbol, CRC-32 of the symbols as bytes
_PIECE = 2**20  # symbols; the coder's own arrays have four bytes for each
_CELLS = 2**14  # of equal width between 0 and 1
_OUTERMOST_LOGIT = 4.6  # PRISM's clamp, 0.01, has a logit of 4.595


@dataclass(frozen=True)
class Coded:
    """Integers below `alphabet`, range coded given `contexts` or without, or packed, whichever takes the fewest bytes.

    The body is one byte for the kind, one for the largest symbol there could be, the CRC-32 of the symbols (uint32),
    and then, for symbols in their own order or sorted by context, the code of `encode_runs`; or, packed, the bits of
    all symbols, most significant first: first the lowest bit of each, then the next one of each, and so on.
    """

    alphabet: int = 2
    contexts: Tensor | None = None
    code: ClassVar[int] = 4

    def encode(self, tensor: Tensor) -> Tensor:
        """Return the body: six bytes, and for n symbols of b bits at most ceil(n b / 8)."""
        symbols = tensor.detach().reshape(-1).to("cpu", torch.uint8).numpy()
        kind, content = _PACKED, _packed(symbols, self.alphabet)
        if 0 < symbols.size <= MOST_CODED:
            coded_kind, code = self._code(symbols)
            if len(code) < len(content):
                kind, content = coded_kind, code
        body = _START.pack(kind, self.alphabet - 1, zlib.crc32(symbols.data)) + content
        return torch.frombuffer(bytearray(body), dtype=torch.uint8).to(tensor.device)

    def _code(self, symbols: NDArray[np.uint8]) -> tuple[int, bytes]:
        """Return the shorter kind of code and the code itself."""
        if self.contexts is not None:
            order, sizes = _sorted_by(self.contexts)
            by_context = symbols[order]
            counts = _counts(by_context, sizes, self.alphabet)
            if _expected_bits(counts) < _expected_bits(counts.sum(0, keepdims=True)):
                return _BY_CONTEXT, encode_runs(by_context, sizes, self.alphabet)
        return _TOGETHER, encode_runs(symbols, [symbols.size], self.alphabet)

    @staticmethod
    def decode(
        body: Tensor, shape: tuple[int, ...], dtype: torch.dtype, contexts: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the symbols, bool or uint8 as they were; raises WireError if body, shape and contexts do not fit."""
        content, count = body.cpu().numpy().tobytes(), math.prod(shape)
        kind, largest, checksum = _START.unpack_from(content) if len(content) >= _START.size else (None, 0, 0)
        if kind not in (_PACKED, _TOGETHER, _BY_CONTEXT) or dtype not in (torch.bool, torch.uint8) or not largest:
            raise WireError(f"payload has {count} {dtype} symbols up to {largest} of kind {kind}: it is damaged")
        if dtype == torch.bool and largest > 1:
            raise WireError(f"payload has booleans up to {largest}: it is damaged")
        code = content[_START.size :]
        if kind == _PACKED:
            symbols = _unpacked(code, count, largest + 1)
        elif kind == _TOGETHER:
            symbols = decode_runs(code, [count], largest + 1)
        else:
            symbols = _in_contexts(code, shape, largest + 1, contexts)
        if zlib.crc32(symbols.data) != checksum:
            blame = "damaged, or coded given other contexts" if kind == _BY_CONTEXT else "damaged"
            raise WireError(f"payload has symbols with a wrong checksum: they are {blame}")
        return {"": torch.from_numpy(symbols).view(shape).to(body.device, dtype)}


def probability_levels(theta: Tensor, levels: int = 32) -> Tensor:
    """Return which of the intervals, equally wide in logit between -4.6 and 4.6, each probability lies in.

    These are the contexts of a mask drawn with probabilities near `theta`, which both ends know (prism.md, section 7).
    Bounds are rounded to multiples of 2^-14: then a level is exact arithmetic and a table, the same on every device,
    where a logarithm would differ in its last digits.

    Args:
        theta: Probabilities, any shape, float; those beyond the outermost logits belong to the outermost intervals.
        levels: Number of intervals, 1 to 256.

    Returns:
        uint8, the shape of `theta`, on its device.

    Raises:
        ValueError: Another number of levels, or what is no probability.
    """
    if not 1 <= levels <= 256:
        raise ValueError(f"1 to 256 levels expected, got {levels}")
    flat = theta.detach().reshape(-1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    if flat.numel() and not (flat.min() >= 0 and flat.max() <= 1):  # not true of NaN either
        raise ValueError("probabilities between 0 and 1 expected")
    middles = (np.arange(_CELLS) + 0.5) / _CELLS
    place = (np.log(middles / (1 - middles)) / _OUTERMOST_LOGIT + 1) / 2 * levels
    table = np.append(np.floor(place).clip(0, levels - 1), levels - 1).astype(np.uint8)  # the last one is for 1 itself
    cells = (flat * _CELLS).int()
    return torch.from_numpy(table).to(theta.device).index_select(0, cells).view(theta.shape)


def encode_runs(symbols: NDArray[np.uint8], sizes: Sequence[int], alphabet: int) -> bytes:
    """Return runs of symbols in one range code: of each its frequencies, then itself.

    Args:
        symbols: Integers below `alphabet`, uint8 (n,), the runs one after another.
        sizes: Length of each run, together n; empty ones take nothing.
        alphabet: Number of symbols there could be, 2 to 256.

    Returns:
        The coder's words, uint32, little-endian.
    """
    encoder = constriction.stream.queue.RangeEncoder()
    for run, counts in zip(_runs(symbols, sizes), _counts(symbols, sizes, alphabet), strict=True):
        if run.size:
            roots = np.rint(np.sqrt(counts)).astype(np.int32)
            encoder.encode(roots, _root_model(run.size))
            model = _symbol_model(roots)
            for start in range(0, run.size, _PIECE):
                encoder.encode(run[start : start + _PIECE].astype(np.int32), model)
    return encoder.get_compressed().astype("<u4").tobytes()


def decode_runs(code: bytes, sizes: Sequence[int], alphabet: int) -> NDArray[np.uint8]:
    """Return the symbols that `encode_runs` made a code of, uint8 (n,).

    Args:
        code: What it returned.
        sizes: Length of each run.
        alphabet: Number of symbols there could be.

    Raises:
        WireError: No such symbols have this code, or there would be more than 2^26.
    """
    total = sum(sizes)
    if total > MOST_CODED or len(code) % 4:
        raise WireError(f"{len(code)} bytes cannot be the code of {total} symbols: they are damaged")
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(code, "<u4").astype(np.uint32))
    symbols = np.empty(total, np.uint8)
    try:
        for run in _runs(symbols, sizes):
            if run.size:
                roots = decoder.decode(_root_model(run.size), alphabet)
                if not roots.any():
                    raise WireError("a run of symbols has no frequencies: it is damaged, or coded given other contexts")
                model = _symbol_model(roots)
                for start in range(0, run.size, _PIECE):
                    run[start : start + _PIECE] = decoder.decode(model, min(_PIECE, run.size - start))
    except AssertionError as error:  # the coder's word for an impossible code
        raise WireError("symbols cannot be decoded: they are damaged, or coded given other contexts") from error
    if not decoder.maybe_exhausted():
        raise WireError("a code goes on after its last symbol: it is damaged, or made given other contexts")
    return symbols


def _root_model(size: int) -> Any:
    """Return the model of a rounded root of a count in a run: all that could be are equally likely."""
    return constriction.stream.model.Uniform(math.isqrt(size) + 2)


def _symbol_model(roots: NDArray[np.int32]) -> Any:
    """Return the model of a symbol in a run: integers and one division, so that both ends have the same numbers."""
    squares = np.square(roots.astype(np.float64))
    return constriction.stream.model.Categorical(squares / squares.sum(), perfect=False)


def _runs(symbols: NDArray[np.uint8], sizes: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    start = 0
    for size in sizes:
        yield symbols[start : start + size]
        start += size


def _counts(symbols: NDArray[np.uint8], sizes: Sequence[int], alphabet: int) -> NDArray[np.int64]:
    """Return how often each symbol occurs in each run, int64 (runs, alphabet)."""
    counts = [np.bincount(run, minlength=alphabet) for run in _runs(symbols, sizes)]
    return np.array(counts, np.int64).reshape(-1, alphabet)


def _expected_bits(counts: NDArray[np.int64]) -> float:
    """Return about how many bits runs with these counts take, their frequencies among them."""
    sizes = counts.sum(1, keepdims=True)
    share = np.where(counts > 0, counts, 1) / np.where(counts > 0, sizes, 1)
    return float(-(counts * np.log2(share)).sum() + counts.shape[1] * np.log2(np.sqrt(sizes) + 2).sum())


def _sorted_by(contexts: Tensor) -> tuple[NDArray[np.int64], list[int]]:
    """Return where the symbols of each context stand, the contexts ascending, and how many each of them has.

    All clients of a round are coded given the same contexts: the newest orders are remembered.
    """
    for remembered, version, order, sizes in _orders:
        if remembered() is contexts and version == contexts._version:
            return order, sizes
    flat = contexts.detach().reshape(-1).cpu().numpy()
    counts = np.bincount(flat)
    order, sizes = np.argsort(flat, kind="stable"), counts[counts > 0].tolist()
    _orders.append((weakref.ref(contexts), contexts._version, order, sizes))
    return order, sizes


def _in_contexts(code: bytes, shape: tuple[int, ...], alphabet: int, contexts: Tensor | None) -> NDArray[np.uint8]:
    """Return the symbols of a code that was made given contexts."""
    if contexts is None:
        raise WireError("payload has symbols that were coded given contexts: decode it with the same ones")
    if contexts.shape != shape or contexts.dtype != torch.uint8:
        found = f"{contexts.dtype} {tuple(contexts.shape)}"
        raise WireError(f"payload has symbols {shape} coded given other contexts than {found}")
    order, sizes = _sorted_by(contexts)
    by_context = decode_runs(code, sizes, alphabet)
    symbols = np.empty_like(by_context)
    symbols[order] = by_context
    return symbols


def _packed(symbols: NDArray[np.uint8], alphabet: int) -> bytes:
    """Return the symbols in as many bits each as the largest one needs."""
    width = (alphabet - 1).bit_length()
    planes = [symbols >> place & 1 for place in range(width)]
    return Bits().encode(torch.from_numpy(np.concatenate(planes))).numpy().tobytes()


def _unpacked(content: bytes, count: int, alphabet: int) -> NDArray[np.uint8]:
    width = (alphabet - 1).bit_length()
    octets = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    planes = Bits.decode(octets, (width, count), torch.uint8)[""].numpy()
    symbols = np.zeros(count, np.uint8)
    for place, plane in enumerate(planes):
        symbols |= plane << place
    if symbols.size and symbols.max() >= alphabet:
        raise WireError(f"payload has a symbol {symbols.max()}, {alphabet - 1} is the largest there is: it is damaged")
    return symbols
