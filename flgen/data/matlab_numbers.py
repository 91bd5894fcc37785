"""Numbers out of a MATLAB file of version 5 or 7, as the labels of Flowers-102 are published.

SciPy's reader follows what a file claims into memory that is not there, and takes the process with it. This one knows
vectors and matrices of real numbers alone, and takes no more from a file than it has.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LARGEST = 1 << 26
"""Bytes of a variable once it is unpacked."""

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""numpy's names of the types in which numbers are stored."""

_COMPLEX = 1 << 11
_REAL_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits


def read_numbers(path: Path, variable: str) -> np.ndarray:
    """Return a variable of a MATLAB file.

    Args:
        path: The file.
        variable: Its name.

    Returns:
        int64 array (N,), column after column.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or has no such variable of whole real numbers.

    Source: MAT-File Format, MathWorks, chapter 1 ("Level 5 MAT-File Format").
    """
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER])
    if order is None:
        raise ValueError("no MATLAB file of version 5 or 7")
    try:
        for kind, data in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                kind, data = next(_elements(_unpacked(data), order))
            if kind == _MATRIX:
                flags, dimensions, name, *rest = _elements(data, order)
                if name[1].rstrip(b"\0").decode("ascii", "replace") == variable:
                    return _values(flags[1], dimensions[1], rest[0], order)
    except (struct.error, zlib.error, IndexError, StopIteration) as error:
        raise ValueError(f"it ends too soon, or is packed wrongly ({error})") from error
    raise ValueError(f"no variable {variable}")


def _values(flags: bytes, dimensions: bytes, data: tuple[int, bytes], order: str) -> np.ndarray:
    (word,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    if (word & 0xFF) not in _REAL_CLASSES or word & _COMPLEX or data[0] not in _NUMBERS:
        raise ValueError("its values are no real numbers")
    values = np.frombuffer(data[1], f"{order}{_NUMBERS[data[0]]}")
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"it has {len(values)} numbers for the shape {shape}")
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise ValueError("its numbers are not whole ones")
    return whole


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each element of a part of the file."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # small: both in one word, the content in the other
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(data) or (start == place + 4 and size > 4):
            raise ValueError("an element is longer than the file")
        yield kind, data[start : start + size]
        padded = 0 if kind == _COMPRESSED else -size % 8
        place = place + 8 if start == place + 4 else start + size + padded


def _unpacked(data: bytes) -> bytes:
    content = zlib.decompressobj().decompress(data, LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    return content
