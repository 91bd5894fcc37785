"""How far two binary masks, or two vectors of mask probabilities, lie apart.

Masks are counted in integers and probabilities averaged in float64, so that millions of weights lose no digits.
Positions may carry weights: PRISM's reference accounting counts some layers twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sampled_hamming(mask_a: Tensor, mask_b: Tensor, weights: Tensor | None = None) -> float:
    """Return the share of positions in which two masks differ (PRISM's lambda from sampled masks).

    Args:
        mask_a: Mask of zeros and ones, any shape, bool, integer or float.
        mask_b: Mask of the same shape.
        weights: How often each position counts, non-negative integers of the same shape; None counts each once.
    """
    _check_shapes(mask_a, mask_b, weights)
    differ = mask_a.bool() != mask_b.bool()
    return _count(differ, weights) / _count(torch.ones_like(differ), weights)


def expected_hamming(p: Tensor, q: Tensor, weights: Tensor | None = None) -> float:
    """Return the mean of `sampled_hamming` over independent masks drawn with probabilities `p` and `q`.

    It is not zero for `p = q`: it measures how undecided the probabilities are as well as how far they moved.

    Args:
        p: Probabilities of a one, any shape, float.
        q: Probabilities of the other mask, the same shape.
        weights: How often each position counts, non-negative numbers of the same shape; None counts each once.
    """
    _check_shapes(p, q, weights)
    p, q = p.double(), q.double()
    differ = p * (1 - q) + q * (1 - p)
    if weights is None:
        return differ.mean().item()
    return ((weights * differ).sum() / weights.sum()).item()


def cosine_distance(mask_a: Tensor, mask_b: Tensor, weights: Tensor | None = None) -> float:
    """Return one minus the cosine between two masks read as vectors of zeros and ones.

    An all-zero mask has no direction: its distance is 0 to another all-zero mask and 1 to any other.

    Args:
        mask_a: Mask of zeros and ones, any shape, bool, integer or float.
        mask_b: Mask of the same shape.
        weights: How often each position counts, non-negative integers of the same shape; None counts each once.
    """
    _check_shapes(mask_a, mask_b, weights)
    a, b = mask_a.bool(), mask_b.bool()
    ones_a, ones_b, ones_both = _count(a, weights), _count(b, weights), _count(a & b, weights)
    if ones_a == 0 or ones_b == 0:
        return float(ones_a != ones_b)
    return 1.0 - ones_both / math.sqrt(ones_a * ones_b)


def binary_entropy(p: Tensor) -> Tensor:
    """Return the entropy of each Bernoulli(p), in bits, as float64 of the shape of `p`; 0 at p = 0 and p = 1.

    Args:
        p: Probabilities of a one, any shape, float.
    """
    p = p.double()
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


def cross_entropy_bits(theta: Tensor, mask: Tensor) -> float:
    """Return what a mask takes in bits if it is coded by given probabilities (prism.md, section 7 and check 9).

    That is the sum of -[m log2 theta + (1 - m) log2(1 - theta)], infinite for a mask that cannot be. Its expectation
    over masks drawn from `theta` is the sum of `binary_entropy`.

    Args:
        theta: Probabilities of a one, any shape, float.
        mask: Mask of zeros and ones of the same shape, bool, integer or float.
    """
    _check_shapes(theta, mask)
    theta = theta.double()
    return -torch.where(mask.bool(), theta, 1 - theta).log2().sum().item()


def _count(selected: Tensor, weights: Tensor | None) -> int:
    return int(selected.sum() if weights is None else weights[selected].sum())


def _check_shapes(a: Tensor, b: Tensor, weights: Tensor | None = None) -> None:
    shapes = [tuple(tensor.shape) for tensor in (a, b, weights) if tensor is not None]
    if len(set(shapes)) > 1 or a.numel() == 0:
        raise ValueError(f"tensors of one shape with at least one element expected, got {shapes}")
