"""Shamir's secret sharing: any t of n shares rebuild a secret, fewer say nothing about it.

Shamir, "How to Share a Secret", CACM 1979; gptfl.md, section 2.6.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

PRIME = 2**521 - 1
"""Order of the field: a Mersenne prime, above every 256-bit secret."""

SHARE_BYTES = 66
"""Bytes of an element of the field of `PRIME`."""


def split(secret: int, threshold: int, points: Iterable[int], prime: int = PRIME) -> dict[int, int]:
    """Return a share of the secret for each point, any `threshold` of which rebuild it.

    Args:
        secret: In [0, prime).
        threshold: Number of shares needed, t.
        points: Distinct numbers in 1 .. prime - 1, one per holder.
        prime: Order of the field.

    Raises:
        ValueError: The secret or a point is outside the field, or there are fewer points than the threshold.
    """
    points = list(points)
    if not 0 <= secret < prime or any(not 0 < z < prime for z in points) or len(set(points)) != len(points):
        raise ValueError("a secret of the field and distinct points from 1 expected")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} of {len(points)} shares")
    # f(z) = secret + a_1 z + ... + a_(t-1) z^(t-1), every a_i uniform
    coefficients = [secret, *(secrets.randbelow(prime) for _ in range(threshold - 1))]
    return {z: evaluate(coefficients, z, prime) for z in points}


def evaluate(coefficients: Sequence[int], z: int, prime: int = PRIME) -> int:
    """Return f(z), the constant coefficient first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * z + coefficient) % prime
    return value


def lagrange_weights(points: Sequence[int], prime: int = PRIME) -> list[int]:
    """Return what the values at these points are multiplied by to give f(0) as their sum."""
    weights = []
    for i in points:
        above = below = 1
        for j in points:
            if j != i:
                above = above * j % prime
                below = below * (j - i) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return weights


def rebuild(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> int:
    """Return the secret, f(0), from the shares at `threshold` points.

    Args:
        shares: By point; those beyond the threshold are not looked at.
        threshold: Number of shares needed, t.
        prime: Order of the field.

    Raises:
        ValueError: There are fewer shares than the threshold.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares, {threshold} are needed")
    points = sorted(shares)[:threshold]
    weights = lagrange_weights(points, prime)
    return sum(weight * shares[z] for weight, z in zip(weights, points, strict=True)) % prime
