"""The checksum of an entry: the same on every device, and computed where the entry lies."""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

_PIECE = 2**15  # words; what is made on the way then stays in a processor's cache
_GPU_PIECE = 2**22  # and takes no more than 64 MB of a GPU's memory


def checksum(head: bytes, body: Tensor) -> int:
    """Return 32 bits that differ, but for one chance in 2^32, if a bit of an entry does.

    The body's words w_i, 64 bits each, are weighed with odd numbers, sum_i (2 i + 1) w_i modulo 2^64, which notices a
    word that changed and two that changed places. The CRC-32 of the head takes in that sum and the last few bytes.

    Args:
        head: What comes before the body.
        body: uint8 (bytes,), on any device.
    """
    words, rest = body[: body.numel() // 8 * 8], body[body.numel() // 8 * 8 :]
    if words.data_ptr() % 8:
        words = words.clone()  # a body may start at any byte of a message
    total = _weighed(words.view(torch.int64)) if words.numel() else 0
    return zlib.crc32(struct.pack("<q", total) + bytes(rest.tolist()), zlib.crc32(head))


def _weighed(words: Tensor) -> int:
    piece = _PIECE if words.device.type == "cpu" else _GPU_PIECE
    weights = torch.arange(1, 2 * min(piece, words.numel()), 2, device=words.device)
    total = words.new_zeros(())
    for number, part in enumerate(words.split(piece)):
        total += (part * weights[: part.numel()]).sum() + 2 * number * piece * part.sum()
    return int(total)
