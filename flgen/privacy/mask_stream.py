"""Masks: uniform residues mod R out of a 32-byte key, PRG in gptfl.md, section 2.6.

AES-256 in counter mode: 5 MB take 1.3 ms with the processor's AES instructions, ChaCha20 takes 4 ms. A key is derived
for one purpose (`key_agreement.derive_key`), so a stream is never used twice and starts at counter zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from Crypto.Cipher import AES

from flgen.wire import residues
from flgen.wire.residues import Residues

_PIECE = 2**16  # elements; a piece of the stream and what it is added to stay in the cache
_ZEROS = bytes(8 * _PIECE)


class MaskStream:
    """A sequence of independent uniform residues mod R, the same for everyone who has the key.

    Args:
        key: 32 bytes.
        modulus: R, a power of two or any number up to 2^63; residues mod another number than a power of two are
            drawn by rejection, so they are uniform too.
    """

    def __init__(self, key: bytes, modulus: int) -> None:
        self.modulus = modulus
        self._cipher = AES.new(key, AES.MODE_CTR, nonce=bytes(8))
        self._word = np.dtype(residues.word_type(modulus)).newbyteorder("<")
        self._low_bits = (modulus - 1).bit_length()

    def draw(self, count: int) -> Residues:
        """Return the next residues (count,)."""
        drawn = residues.zeros(count, self.modulus)
        for start, piece in self._pieces(count):
            drawn[start : start + len(piece)] = piece
        return drawn

    def add_to(self, total: Residues, sign: int) -> None:
        """total <- total + sign * mask mod R, in place, with the next residues.

        Args:
            total: Residues mod R (d,).
            sign: +1 or -1.
        """
        change = residues.add if sign > 0 else residues.subtract
        for start, piece in self._pieces(len(total)):
            change(total[start : start + len(piece)], piece, self.modulus)

    def _pieces(self, count: int) -> Iterator[tuple[int, Residues]]:
        buffer = memoryview(bytearray(self._word.itemsize * min(count, _PIECE)))
        done = 0
        while done < count:
            piece = self._words(buffer[: self._word.itemsize * (count - done)])
            if not residues.is_power_of_two(self.modulus):
                piece = piece[piece < self.modulus]
            yield done, piece
            done += len(piece)

    def _words(self, stream: memoryview) -> Residues:
        """Fill a buffer with numbers of as many bits as R - 1 has, uniform, and return them."""
        self._cipher.encrypt(memoryview(_ZEROS)[: len(stream)], output=stream)
        words = np.frombuffer(stream, dtype=self._word)
        if self._low_bits < 8 * self._word.itemsize:
            words &= self._word.type(2**self._low_bits - 1)
        return words
