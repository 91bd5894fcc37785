"""Arithmetic on vectors of residues mod R, in place: R is a power of two, or any number up to 2^63.

A vector lies in the smallest word that holds its sums: mod 2^k for k up to 32 a uint32 that wraps by itself, else
uint64. Every element is always in [0, R).
"""

from __future__ import annotations

import numpy as np

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

Residues = np.ndarray

LARGEST_MODULUS = 2**63


def is_power_of_two(modulus: int) -> bool:
    """Whether residues wrap around with the machine's own words."""
    return modulus & (modulus - 1) == 0


def word_type(modulus: int) -> type[np.unsignedinteger]:
    """Return the element type of vectors mod R.

    Raises:
        ValueError: R is no modulus, or the sum of two residues would not fit 64 bits.
    """
    if not 2 <= modulus <= LARGEST_MODULUS:
        raise ValueError(f"modulus {modulus}: 2 to 2^63 expected")
    return np.uint32 if is_power_of_two(modulus) and modulus <= 2**32 else np.uint64


def as_residues(values: np.ndarray, modulus: int) -> Residues:
    """Return a copy of non-negative integers in the type of residues mod R.

    Raises:
        ValueError: One of them is not in [0, R).
    """
    if values.size and not (values.min() >= 0 and int(values.max()) < modulus):
        raise ValueError(f"residues mod {modulus} expected, got {values.min()} to {values.max()}")
    return values.astype(word_type(modulus))


def as_words(values: Residues) -> Tensor:
    """Return residues as the signed words of their size, which is what travels; they share their memory."""
    return torch.from_numpy(values.view(np.int32 if values.itemsize == 4 else np.int64))


def from_words(words: Tensor, modulus: int) -> Residues:
    """Return signed words as residues mod R, in place where the memory is the processor's.

    Args:
        words: Of `as_words`, or for a power of two sums of them that may have overflowed.
        modulus: R.
    """
    values = words.cpu().numpy()
    values = values.view(f"u{values.itemsize}")
    _wrap(values, modulus)
    return values


def zeros(count: int, modulus: int) -> Residues:
    """Return d zeros mod R."""
    return np.zeros(count, dtype=word_type(modulus))


def add(total: Residues, other: Residues, modulus: int) -> None:
    """total <- total + other mod R."""
    total += other
    _wrap(total, modulus)


def subtract(total: Residues, other: Residues, modulus: int) -> None:
    """total <- total - other mod R."""
    if is_power_of_two(modulus):
        total -= other
    else:
        total += np.uint64(modulus) - other
    _wrap(total, modulus)


def _wrap(total: Residues, modulus: int) -> None:
    if not is_power_of_two(modulus):
        # Below R the difference wraps around to more than R; to ask for the smaller one is faster than a mask.
        np.minimum(total, total - np.uint64(modulus), out=total)
    elif modulus < 2 ** (8 * total.itemsize):
        total &= total.dtype.type(modulus - 1)
