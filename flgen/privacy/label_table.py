"""Invertible Bloom lookup tables over a prime field: a set of labels as a vector that adds up across clients.

A cell is (count, key_1 .. key_Cc, check), each a sum over the labels that fall into it. Sums in a field can be divided
by the count, so that a label held by many clients is read as easily as one held by a single client; the textbook's XOR
cells cancel or never become pure then. After Goodrich & Mitzenmacher 2011; specification of GPT-FL, sections 2.1-2.5.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flgen.errors import UsageError
from flgen.wire import residues

MODULUS = 2**61 - 1
"""p, a prime above any number of clients, so that every multiplicity has an inverse (which even ones lack mod 2^b)."""

WORD_BYTES = 7  # a key word stays below p

CELLS_PER_KEY = {3: 1.222, 4: 1.295, 5: 1.425, 6: 1.570}
"""a_k: how many cells a key needs, asymptotically, for peeling to go through with k hashes."""


def canonical(label: str) -> str:
    """Return the one spelling of a label: NFKC, `_` and runs of white space as one blank, stripped, lower case.

    Lower case may leave letters apart that NFKC joins (J with a caron), so it is normalised again at the end.
    """
    plain = " ".join(unicodedata.normalize("NFKC", label).replace("_", " ").split())
    return unicodedata.normalize("NFKC", plain.lower())


def table_width(capacity: int, hashes: int, failure_rate: float) -> int:
    """Return m, the cells of each sub-table.

    Two things keep a table from being read: two labels that meet in all k cells, at most n(n - 1) / (2 m^k), and more
    labels than peeling can untangle, which a margin on a_k guards against. The margin is larger where it alone decides.

    Args:
        capacity: n, an upper bound of the number of distinct labels.
        hashes: k, 3 to 6.
        failure_rate: delta, the probability that two labels meet in all k cells.

    Source: specification of GPT-FL, section 2.4.
    """
    n, k, a_k = capacity, hashes, CELLS_PER_KEY[hashes]
    pairs = math.ceil((n * (n - 1) / (2 * failure_rate)) ** (1 / k))
    if math.ceil(1.3 * a_k * n / k) <= pairs:
        return pairs
    return math.ceil(1.6 * a_k * n / k)


@dataclass(frozen=True)
class TableLayout:
    """Size and hash functions of a table; public, the same for everybody who adds to it.

    Args:
        hashes: k, the number of sub-tables; a label has one cell in each.
        width: m, the cells of a sub-table.
        key_cells: Cc, the key words of a cell; a label has at most 7 Cc - 1 bytes of UTF-8.
        seed: Chooses the hash functions, 0 to 2^64 - 1.
    """

    hashes: int
    width: int
    key_cells: int
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, m, Cc + 2): sub-tables, cells, field elements of a cell."""
        return self.hashes, self.width, self.key_cells + 2

    @property
    def nbytes(self) -> int:
        """Size of a table, 8 bytes for each field element."""
        return 8 * math.prod(self.shape)

    def encode(self, label: str) -> tuple[int, ...]:
        """Return key_1 .. key_Cc, the words of a canonical label: one length byte, UTF-8, zeros, big-endian.

        Raises:
            UsageError: The label is empty, no valid text, or too long; it is never cut.
        """
        size = WORD_BYTES * self.key_cells
        try:
            text = label.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError(f"label {label!r} cannot be written as UTF-8: rename the class") from None
        if not text:
            raise UsageError("a label is empty: name every class")
        if len(text) > size - 1:
            raise UsageError(
                f"label {label!r} has {len(text)} bytes, more than the {size - 1} that {self.key_cells} key cells "
                f"hold: shorten it, or raise --union.key_cells to {-(-(len(text) + 1) // WORD_BYTES)}"
            )
        padded = (bytes([len(text)]) + text).ljust(size, b"\0")
        return tuple(int.from_bytes(padded[at : at + WORD_BYTES], "big") for at in range(0, size, WORD_BYTES))

    def decode(self, words: Sequence[int]) -> str | None:
        """Return the label that `encode` made these words of, or None if it made them of none."""
        if any(word >> (8 * WORD_BYTES) for word in words):
            return None
        padded = b"".join(word.to_bytes(WORD_BYTES, "big") for word in words)
        length, text, rest = padded[0], padded[1 : 1 + padded[0]], padded[1 + padded[0] :]
        if length == 0 or len(text) < length or any(rest):
            return None
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            return None

    def position(self, label: str, i: int) -> int:
        """Return h_i(label), the label's cell in sub-table i."""
        return self._hash(label, b"flgen-h", i) % self.width

    def check(self, label: str) -> int:
        """Return q(label), the field element by which a pure cell is told from a mixture."""
        return self._hash(label, b"flgen-q", 0) % MODULUS

    def cell(self, label: str, v: int) -> list[int]:
        """Return v (1, key_1 .. key_Cc, q) mod p: what v times a label adds to each of its cells."""
        return [v * element % MODULUS for element in (1, *self.encode(label), self.check(label))]

    def cells_of(self, label: str) -> Iterator[tuple[int, int]]:
        """Yield (i, h_i(label)) for every sub-table."""
        for i in range(self.hashes):
            yield i, self.position(label, i)

    def pure(self, cell: Sequence[int], i: int, j: int) -> tuple[str, int] | None:
        """Return the label and the multiplicity of cell j in sub-table i if it holds one label alone, else None.

        A mixture passes with a probability of at most 1/p, and then leaves a residue.
        """
        c = cell[0]
        if c == 0:
            return None
        inverse = pow(c, -1, MODULUS)
        label = self.decode([element * inverse % MODULUS for element in cell[1:-1]])
        if label is None or cell[-1] != c * self.check(label) % MODULUS or self.position(label, i) != j:
            return None
        return label, c

    def _hash(self, label: str, tag: bytes, i: int) -> int:
        digest = hashlib.blake2b(
            label.encode("utf-8"), digest_size=8, key=self.seed.to_bytes(8, "little"), person=tag + bytes([i])
        )
        return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True)
class Peeled:
    """What was read from a table.

    Args:
        multiplicities: c of each label, 1 to p - 1: the sum of the v with which it was inserted.
        residual_cells: Cells that are not zero after all that was read is taken out.
    """

    multiplicities: dict[str, int]
    residual_cells: int

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(sorted(self.multiplicities))

    @property
    def complete(self) -> bool:
        """Whether nothing is left in the table; only then are the labels all that it held."""
        return self.residual_cells == 0


class LabelTable:
    """A multiset of labels as k x m cells.

    Args:
        layout: Size and hash functions.
        cells: Field elements below p, uint64 array (k, m, Cc + 2); None makes an empty table.
    """

    def __init__(self, layout: TableLayout, cells: np.ndarray | None = None) -> None:
        self.layout = layout
        self.cells = np.zeros(layout.shape, np.uint64) if cells is None else cells

    def insert(self, label: str, v: int) -> None:
        """Add v times a canonical label; -v takes it out again.

        Raises:
            UsageError: The label is empty or too long.
        """
        places = tuple(np.transpose(list(self.layout.cells_of(label))))  # one in each sub-table
        cells = self.cells[places]  # (k, Cc + 2)
        residues.add(cells, np.array(self.layout.cell(label, v), dtype=np.uint64), MODULUS)
        self.cells[places] = cells

    def merge(self, other: LabelTable) -> LabelTable:
        """Return the table of both multisets: the sum that secure aggregation computes."""
        both = LabelTable(self.layout, self.cells.copy())
        residues.add(both.cells, other.cells, MODULUS)
        return both

    def peel(self) -> Peeled:
        """Read the labels one by one: each that lies alone in a cell is taken out of all its cells."""
        k, m, _ = self.layout.shape
        cells: list[list[list[int]]] = self.cells.tolist()  # Python's integers: products have 122 bits
        multiplicities: dict[str, int] = {}
        stack = [(i, j) for i in range(k) for j in range(m)]
        # A label that was read lies nowhere any more and leaves a cell empty for good. Only a false pure cell could
        # bring one back, or give more labels than there are cells; what it leaves behind makes the table incomplete.
        while stack and len(multiplicities) < k * m:
            i, j = stack.pop()
            found = self.layout.pure(cells[i][j], i, j)
            if found is None or found[0] in multiplicities:
                continue
            label, c = found
            multiplicities[label] = c
            taken = self.layout.cell(label, -c)
            for cell in self.layout.cells_of(label):
                i, j = cell
                cells[i][j] = [(x + y) % MODULUS for x, y in zip(cells[i][j], taken, strict=True)]
                stack.append(cell)
        return Peeled(multiplicities, sum(any(cell) for row in cells for cell in row))
